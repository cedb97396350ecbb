"""Ending a generation at a string of the user's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter

from tenp_edge.runtime.chat_formats.reading import begun
from tenp_edge.runtime.generation import Piece


class Stops:
    """Pieces up to the first of ``stops``, which is left out; still one piece per token.

    Text that may be the beginning of a stop string is held back, so no part of one is ever sent.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = stops, ""

    def cut(self, piece: Piece) -> Piece:
        """``piece`` with the text that may be sent, the last one where a stop string is in it."""
        held = self._held + piece.text
        places = [(at, stop) for stop in self._stops if (at := held.find(stop)) >= 0]
        if places:
            at, word = min(places, key=itemgetter(0))
            return replace(piece, text=held[:at], finish="stop", word=word)
        keep = 0 if piece.finish else begun(held, self._stops)
        sent, self._held = held[: len(held) - keep], held[len(held) - keep :]
        return replace(piece, text=sent)
