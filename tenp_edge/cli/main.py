"""The verbs. The only place that prints errors or decides the exit code.

stdout is the result, stderr is progress. A UserError is two lines and exit 2, and so is what the
operating system refuses; anything else that escapes is a bug of ours and shows its traceback.
Ctrl-C and SIGTERM end with 130 and 143, and say what the same command does.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import cleandoc
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from tenp_edge.cli import interrupts
from tenp_edge.cli.os_errors import as_user_error
from tenp_edge.cli.output.console import err
from tenp_edge.cli.output.readers import is_broken_pipe, last_words, reader_has_left
from tenp_edge.errors import UserError
from tenp_edge.threads import logical_cores, usable_threads
from tenp_edge.version import __version__

# Each verb and its module of `commands`. In the order of the help.
VERBS = {
    "doctor": "doctor",
    "demo": "prune",
    "fit": "fit",
    "inspect": "inspect",
    "profiles": "inspect",
    "calibrate": "prune",
    "merge": "prune",
    "plan": "prune",
    "compress": "prune",
    "export": "convert",
    "validate": "evaluate",
    "compare": "evaluate",
    "report": "pages",
    "pack": "share",
    "push": "share",
    "run": "run",
    "serve": "run",
    "bench": "run",
}


class _Help:
    """Switches take no value, and do not look as if they did."""

    def get_params(self, ctx: Any) -> Any:
        parameters = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters

    def format_help(self, ctx: Any, formatter: Any) -> None:
        with last_words():
            super().format_help(ctx, formatter)  # type: ignore[misc]


class _Verb(_Help, TyperCommand):
    """One verb."""


class _Verbs(_Help, TyperGroup):
    """The verbs; one is loaded when it is typed, all are for the help and for a mistyped one."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        for name in [cmd_name] if cmd_name in VERBS else VERBS:
            if name not in self.commands:
                self.commands[name] = _for_a_terminal(loaded_verb(name))
        return self.commands.get(cmd_name)


def loaded_verb(name: str) -> Any:
    """The verb as a command of its own, for the command line and the pages made from it."""
    verb = typer.Typer(rich_markup_mode="rich", add_completion=False)
    verb.command(name, cls=_Verb)(
        getattr(import_module(f"tenp_edge.cli.commands.{VERBS[name]}"), name)
    )
    return typer.main.get_command(verb)


def _for_a_terminal(command: Any) -> Any:
    """The help as it is to be shown: paragraphs flow, and a word in brackets is no markup."""
    paragraphs = cleandoc(command.help or "").split("\n\n")
    flowing = (p if p.startswith(" ") else " ".join(p.split("\n")) for p in paragraphs)
    command.help = _plain("\n\n".join(flowing))
    for parameter in command.params:
        parameter.help = _plain(getattr(parameter, "help", None) or "")
    return command


def _plain(text: str) -> str:
    return re.sub(r"(?=\[[a-z#/@])", r"\\", text)


app = typer.Typer(
    name="tenp-edge",
    cls=_Verbs,
    help="Prune the experts of a Mixture-of-Experts model to a RAM budget, export it, prove it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# Verbs whose speed is the point: there the OpenMP library's own choice stays.
_RUNNING = ("run", "serve", "bench")
# Verbs that find their own work again.
_CONTINUING = ("calibrate", "compress", "compare", "demo", "push")


def _typed() -> None:
    """What was typed, as typer reads it; what it refuses is said as everything else is."""
    _check_words(sys.argv[1:])
    try:
        code = app(standalone_mode=False)
    except SystemExit as stopped:
        raise (reader_has_left() if is_broken_pipe(stopped) else stopped) from None
    except Exception as error:
        said = getattr(error, "format_message", None)
        if said is None:
            raise
        if not said():  # the help, where nothing was typed: it is printed already
            raise SystemExit(2) from None
        message, _, possible = str(said()).partition(" (Possible options: ")
        context = getattr(error, "ctx", None)
        ways = [possible.rstrip(")"), f"{context.command_path} --help" if context else "--help"]
        text = message[:1].lower() + message[1:].rstrip(".")
        text = re.sub("^invalid value for (.+): Input should be", r"\1 must be", text)
        text = text.partition(", unable to parse")[0]
        raise UserError(text, "; or ".join(filter(None, ways))) from None
    if isinstance(code, int) and code:
        raise SystemExit(code)


_TEXTS = ("-p", "--prompt", "--system")


def _check_words(words: Sequence[str]) -> None:
    """Refuse words whose bytes are no text here: names end up in files that hold only text. What
    is said to a model is read as UTF-8 by its command, in any locale."""
    for before, word in pairwise(("", *words)):
        if before in _TEXTS or word.partition("=")[0] in _TEXTS:
            continue
        if not word.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in word):
            shown = word.encode(errors="surrogateescape").decode(errors="replace")
            raise UserError(
                f"{shown!r} is not text in UTF-8, or the locale is another one",
                "a link to it with a plain name (ln -s); or LC_ALL=C.UTF-8 before the command",
            )


def main(command: Callable[[], object] = _typed) -> None:
    """Run ``command``, by default what was typed, and say in plain words what goes wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        with interrupts.stopping():
            command()
    except UserError as error:
        _fail(error.message, error.hint)
    except interrupts.Stopped as stopped:
        _fail(str(stopped), _again(), stopped.exit_code)
    except OSError as error:
        refused = as_user_error(error)
        if refused is None:
            raise
        _fail(refused.message, refused.hint)


def _again() -> str:
    if any(argument in _CONTINUING for argument in sys.argv[1:2]):
        return "the same command again: it continues where it stopped"
    return "the same command again: it starts anew"


def _fail(message: str, hint: str | None, code: int = 2) -> None:
    err.print(f"error: {message}", style="bold", markup=False, highlight=False, soft_wrap=True)
    if hint:
        err.print(f"try:   {hint}", markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(code)


def _version(value: bool) -> None:
    if value:
        with last_words():
            print(f"tenp-edge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "-V", "--version", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand not in _RUNNING:
        # Threads that wait for each other by spinning lose whole time slices where others compute
        # too: three times the CPU seconds and the time, and none gained on an idle machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        if usable_threads() < logical_cores():  # Who computes here counts the machine's cores.
            os.environ.setdefault("OMP_NUM_THREADS", str(usable_threads()))
    else:
        interrupts.leave_to_the_verb()


if __name__ == "__main__":
    main()
