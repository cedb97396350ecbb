"""Lines on stderr beside the result, for the verbs that run a file."""

from __future__ import annotations

import os
import sys


def note(text: str) -> None:
    """``text`` as a line on stderr, dim on a terminal."""
    dumb = "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    plain = dumb or not sys.stderr.isatty()
    sys.stderr.write(f"{text}\n" if plain else f"\x1b[2m{text}\x1b[0m\n")
    sys.stderr.flush()
