"""The two streams of the command line: results on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys

from rich.console import Console, RenderableType

from tenp_edge.cli.terminal import TerminalProgress

# In a pipe or a log there is no terminal width to respect.
out = Console(width=None if sys.stdout.isatty() else 110)
err = Console(stderr=True)
progress = TerminalProgress(err)


def show(rendered: RenderableType, data: object, as_json: bool, last_words: object = None) -> None:
    """``rendered``, or ``data`` as JSON. ``last_words`` below it are not wrapped: commands among
    them are there to be copied."""
    if as_json:
        print(json.dumps(data, indent=1))
        return
    out.print(rendered)
    if last_words is not None:
        out.print(f"\n{last_words}", markup=False, highlight=False, soft_wrap=True)
