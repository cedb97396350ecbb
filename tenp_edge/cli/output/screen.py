"""How much a verb says, and where: --json, --quiet and --verbose."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from rich.console import Console, RenderableType

from tenp_edge.cli.output.readers import last_words
from tenp_edge.cli.output.terminal import TerminalProgress
from tenp_edge.cli.report.entries import WIDTH, Entries
from tenp_edge.errors import UserError
from tenp_edge.planning.options.settings import Flag

# In a pipe or a log there is no terminal width to respect.
_PIPE_WIDTH = 160


@dataclass(frozen=True)
class Screen:
    """The flags of every verb that prints a result."""

    verbose: Annotated[
        bool, Flag("verbose", "Every table and number; the default is one screen.", also=("-v",))
    ] = False
    quiet: Annotated[
        bool, Flag("quiet", "Only errors, and one last line: no progress, no notes.", also=("-q",))
    ] = False
    as_json: Annotated[bool, Flag("json", "Print JSON instead of tables.")] = False

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise UserError("--quiet and --verbose are opposites", "one of them")

    @cached_property
    def progress(self) -> TerminalProgress:
        return TerminalProgress(Console(stderr=True), quiet=self.quiet)

    def show(
        self,
        data: object,
        *shown: RenderableType | Entries,
        details: RenderableType | None = None,
        line: str = "",
    ) -> None:
        """``data`` as JSON; or ``line`` where it is to be quiet; or ``shown``, after ``details``
        where all is asked for."""
        with last_words():
            if self.as_json:
                print(json.dumps(data, indent=1))
            elif self.quiet:
                print(line)
            else:
                parts = [details] if self.verbose and details is not None else []
                draw(*parts, *shown)


def draw(*parts: RenderableType | Entries) -> None:
    """``parts`` on stdout, a blank line before the entries; nothing blank at the end of a line."""
    console = stdout()
    for number, part in enumerate(parts):
        if isinstance(part, Entries):
            # Not wrapped: commands among them are there to be copied.
            text = part.text(console.width if console.is_terminal or _told() else WIDTH)
            print(f"\n{text}" if number else text)
        elif console.is_terminal:
            console.print(part)
        else:
            if number:
                print()
            with console.capture() as captured:
                console.print(part)
            lines = captured.get().splitlines()
            print("\n".join(line.rstrip() for line in lines).strip("\n"))


def stdout() -> Console:
    """As wide as the terminal, or as COLUMNS says."""
    known = sys.stdout.isatty() or _told()
    return Console(width=None if known else _PIPE_WIDTH)


def _told() -> bool:
    return os.environ.get("COLUMNS", "").isdigit()
