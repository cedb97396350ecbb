"""A screen of labelled lines: "memory    fits into 8.00 GiB: ...", folded to the width there is."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 96
_LABELS = 10
# On a narrower screen a command stands below what it does.
_NARROW = 72


@dataclass(frozen=True)
class Entries:
    """``lines``: label and text, the label empty where a text goes on under the one before.
    ``commands``: what can be done next, each with what to type for it."""

    lines: Sequence[tuple[str, str]]
    commands: Sequence[tuple[str, str]] = ()

    def text(self, width: int = WIDTH) -> str:
        """At most ``width`` columns wide, but for words and commands that are wider."""
        width = min(width, WIDTH)
        made = [line for label, text in self.lines for line in _entry(label, text, width)]
        stacked = width < _NARROW
        longest = max((len(what) for what, _ in self.commands), default=0)
        for number, (what, command) in enumerate(self.commands):
            label = f"{'' if number else 'next':{_LABELS}}"
            # Never wrapped: a command is there to be copied.
            if stacked:
                made += [f"{label}{what}:", f"  {command}"]
            else:
                made.append(f"{label}{what + ':':{longest + 3}}{command}")
        return "\n".join(made)

    def __str__(self) -> str:
        return self.text()


def _entry(label: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=f"{label:{_LABELS}}",
        subsequent_indent=" " * _LABELS,
        break_long_words=False,
        break_on_hyphens=False,
    )
