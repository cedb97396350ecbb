"""Notes of a plan or an export for a person: those of one kind are one line."""

from __future__ import annotations

import re
from collections.abc import Iterable

# What exporters say of tensors whose rows do not fill a type's blocks.
_REPLACED = re.compile(r"(\d+) tensors? \(.*\) takes? (\S+): (\S+) needs a multiple of (\d+)")


def merged(notes: Iterable[str]) -> list[str]:
    """``notes`` in their order, each once, those about replaced types as one line."""
    listed = list(dict.fromkeys(notes))
    found = [match for match in map(_REPLACED.fullmatch, listed) if match]
    if len(found) < 2:
        return listed
    others = [note for note in listed if not _REPLACED.fullmatch(note)]
    return [_replaced(found), *others]


def of_interest(notes: Iterable[str]) -> list[str]:
    """`merged` without what only concerns single tensors."""
    return [note for note in merged(notes) if not re.match(r"\d+ tensors? ", note)]


def _replaced(found: Iterable[re.Match[str]]) -> str:
    rows = list(found)
    count = sum(int(row[1]) for row in rows)
    takes, wanted, blocks = (" and ".join(dict.fromkeys(row[n] for row in rows)) for n in (2, 3, 4))
    need = "need" if " and " in wanted else "needs"
    return f"{count} tensors take {takes}: {wanted} {need} rows of a multiple of {blocks}"
