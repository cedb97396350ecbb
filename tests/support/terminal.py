"""A command at a real terminal: keys go in, the screen's bytes come out."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ENTER, TAB, UP, LEFT, BACKSPACE, ALT_ENTER = "\r", "\t", "\x1b[A", "\x1b[D", "\x7f", "\x1b\r"
CTRL_C, CTRL_D, CTRL_A = "\x03", "\x04", "\x01"
READY = ">>>"
_SEQUENCES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]")


class Terminal:
    """`python -m tenp_edge ARGUMENTS` with a pseudo-terminal as its three streams."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process, self._master = process, master
        self.raw = ""
        self._seen = 0

    def press(self, *keys: str) -> None:
        """Send ``keys`` as they are."""
        for key in keys:
            os.write(self._master, key.encode())

    def say(self, text: str) -> None:
        """Type a line at the prompt."""
        self.press(text, ENTER)

    def expect(self, text: str, seconds: float = 60) -> str:
        """Wait for ``text`` in what has been shown since the last call; what came up to its end,
        without the sequences that move the cursor."""
        end = time.monotonic() + seconds
        while text not in (shown := self._new()):
            assert time.monotonic() < end, f"no {text!r} in {shown!r}"
            assert self._read(end - time.monotonic()), f"it ended without {text!r}: {shown!r}"
        shown = shown[: shown.index(text) + len(text)]
        self._seen += len(shown)
        return shown

    def expect_more(self, characters: int, seconds: float = 60) -> None:
        """Wait until so much more was shown."""
        end = time.monotonic() + seconds
        while len(self._new()) < characters:
            assert time.monotonic() < end and self._read(end - time.monotonic()), self._new()

    def ready(self) -> str:
        """Wait for the prompt of the line editor."""
        return self.expect(READY)

    def end(self, seconds: float = 60) -> int:
        """Wait for the end; the exit status."""
        limit = time.monotonic() + seconds
        while self._read(limit - time.monotonic()):
            assert time.monotonic() < limit, self.raw
        return self.process.wait(10)

    @property
    def shown(self) -> str:
        """All that was shown, without the sequences."""
        return _SEQUENCES.sub("", self.raw).replace("\r", "")

    def _new(self) -> str:
        return self.shown[self._seen :]

    def _read(self, seconds: float) -> bool:
        """Read what is there; False at the end."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, seconds))
        if not ready:
            return True
        try:
            data = os.read(self._master, 2**16)
        except OSError:  # Linux's way to say that nobody has the other side open
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)


@contextmanager
def at_terminal(*arguments: object, state: Path, **environment: str) -> Iterator[Terminal]:
    """`tenp-edge ARGUMENTS` at a terminal; ``state``: where its history is kept."""
    import pty  # not on Windows

    master, slave = pty.openpty()
    known = os.environ | {"XDG_STATE_HOME": str(state), "TERM": "xterm"} | environment
    process = subprocess.Popen(
        [sys.executable, "-m", "tenp_edge", *map(str, arguments)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=known,
        preexec_fn=_own_terminal,
        close_fds=True,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(master)


def _own_terminal() -> None:
    """A session of its own, led by this process at the terminal: there Ctrl-C is a signal."""
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
