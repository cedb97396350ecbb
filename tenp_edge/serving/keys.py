"""The keys that requests must bring: from flags, the environment and a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from tenp_edge.errors import UserError

VARIABLE = "TENP_EDGE_API_KEY"
_MOST_BYTES = 2**20


def keys_of(stated: Sequence[str], file: Path | None) -> list[str]:
    """Every key. Raises UserError for a file that cannot be read and for keys that no request can
    bring."""
    keys = [*stated, *filter(None, [os.environ.get(VARIABLE)]), *_in_file(file)]
    for key in keys:
        if not (key.isascii() and key.isprintable() and key.strip() == key and key):
            raise UserError(
                "an API key is empty or has characters that no request can send",
                "letters, digits and - _ . alone",
            )
    return keys


def _in_file(file: Path | None) -> list[str]:
    """A key a line; empty lines and those that begin with # are none."""
    if file is None:
        return []
    try:
        if file.stat().st_size > _MOST_BYTES:
            raise UserError(f"{file} is larger than 1 MiB", "a file with a key a line")
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"{file} cannot be read: {why}", "a file with a key a line") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UserError(f"{file} has no key", "a file with a key a line")
    return keys
