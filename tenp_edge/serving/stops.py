"""Ending a generation at a string of the user's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from tenp_edge.runtime.generation import Piece


def until_stop(pieces: Iterator[Piece], stops: Sequence[str]) -> Iterator[Piece]:
    """``pieces`` up to the first of ``stops``, which is left out; still one piece per token.

    Text that may be the beginning of a stop string is held back, so no part of one is ever sent.
    """
    held = ""
    for piece in pieces:
        held += piece.text
        places = [at for stop in stops if (at := held.find(stop)) >= 0]
        if places:
            yield replace(piece, text=held[: min(places)], finish="stop")
            return
        keep = 0 if piece.finish else _begun(held, stops)
        sent, held = held[: len(held) - keep], held[len(held) - keep :]
        yield replace(piece, text=sent)


def _begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of ``text`` may be the beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0
