"""The ``tenp-edge`` command. `run` is answered here, with as little in memory as it needs; every
other verb, and whatever goes wrong, by the full command line."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import NoReturn

from tenp_edge.errors import UserError


def main() -> None:
    """Entry point."""
    _end_quietly()
    _open_streams()
    _write_unicode()
    from tenp_edge.cli.flags import lean_flags

    verb, arguments = sys.argv[1:2], None
    if verb == ["run"]:
        arguments = lean_flags.read(sys.argv[2:])
    if arguments is None:
        from tenp_edge.cli.main import main as full

        full()
        return
    try:
        _hear_interrupts()
        from tenp_edge.cli.commands import lean_run

        lean_run.run(**arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        from tenp_edge.cli.output.readers import reader_has_left

        raise reader_has_left() from None
    except (UserError, OSError) as error:
        _say(error)


def _end_quietly() -> None:
    """As long as modules are loaded, Ctrl-C ends the process as it ends any other: Python would
    show where it was in them."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _hear_interrupts() -> None:
    """From here on, Ctrl-C is a KeyboardInterrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _open_streams() -> None:
    """Give a process that was started without one of the three streams an empty one, so that no
    file that is opened takes its place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            from pathlib import Path

            empty = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115  for good
            setattr(sys, name, empty)


def _write_unicode() -> None:
    """Bars, dashes and the model's words in pipes too: on Windows those have a code page of 256
    characters, and the first other one would end the command. So it would in a locale without
    Unicode elsewhere: there it is a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if not isinstance(stream, io.TextIOWrapper):
            continue
        if os.name == "nt" and not stream.isatty():
            stream.reconfigure(encoding="utf-8", errors="replace")
        elif not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors="replace")


def _say(error: Exception) -> NoReturn:
    """``error`` in the words of the full command line, which is loaded only now."""
    from tenp_edge.cli.main import main as full

    def failed() -> NoReturn:
        raise error

    full(failed)
    raise AssertionError("an error ends the command")
