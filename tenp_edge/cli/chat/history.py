"""Where the questions of earlier conversations are kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

# The file to use; empty: none.
VARIABLE = "TENP_EDGE_HISTORY"


def history_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The user's file: in the XDG state directory, in the Library on a Mac. None where that is in a
    home that there is not, as of a user without an account."""
    try:
        if VARIABLE in environment:
            named = environment[VARIABLE]
            return Path(named).expanduser() if named else None
        return _state_directory(environment) / "tenp-edge" / "history"
    except RuntimeError:
        return None


def _state_directory(environment: Mapping[str, str]) -> Path:
    stated = environment.get("XDG_STATE_HOME")
    if stated:
        return Path(stated)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    return Path.home() / ".local" / "state"
