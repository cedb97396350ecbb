"""Where two models disagree most: a few places of the text, with what each expected to come next.

At most two places of a sequence are kept, so that one odd sequence is not all there is to see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from tenp_edge.evaluation.divergence import TokenScores
from tenp_edge.forward.text_batch import TextBatch

MOST = 12  # places of a report
_OF_A_SEQUENCE, _TOP = 2, 5
_BEFORE, _AFTER = 32, 8  # tokens of text around the place

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Guess:
    """A token as text, and the probability that a model gave it."""

    token: str
    probability: float


@dataclass(frozen=True)
class Disagreement:
    """A place of the text: what stood ``before``, what came ``next`` and ``after``; the most likely
    tokens of both models, the likeliest first. ``kl`` in nats."""

    domain: str
    kl: float
    before: str
    next: str
    after: str
    reference: tuple[Guess, ...]
    candidate: tuple[Guess, ...]


@dataclass(frozen=True)
class _Place:
    kl: float
    row: int
    position: int  # of the token that predicts; the next one is predicted
    reference: tuple[tuple[int, float], ...]
    candidate: tuple[tuple[int, float], ...]


class Disagreements:
    """Collects the places of one candidate, a sequence at a time."""

    def __init__(self, batch: TextBatch) -> None:
        self._batch = batch
        self._places: list[_Place] = []

    def add(
        self,
        row: int,
        start: int,
        scores: TokenScores,
        reference: torch.Tensor,
        candidate: torch.Tensor,
    ) -> None:
        """Sequence ``row``, scored from position ``start`` on: logits [tokens, vocab] of both."""
        kl = scores.kl
        for place in kl.topk(min(_OF_A_SEQUENCE, len(kl))).indices.tolist():
            if kl[place] > 0:
                tops = (_likeliest(logits[place]) for logits in (reference, candidate))
                self._places.append(_Place(float(kl[place]), row, start + place, *tops))
        self._places = sorted(self._places, key=lambda one: -one.kl)[:MOST]

    def found(self, decode: Decode) -> tuple[Disagreement, ...]:
        """The places as text, the worst first."""
        return tuple(self._shown(place, decode) for place in self._places)

    def _shown(self, place: _Place, decode: Decode) -> Disagreement:
        tokens = self._batch.tokens[place.row, : int(self._batch.lengths[place.row])].tolist()
        here = place.position + 1
        before, after = tokens[max(here - _BEFORE, 0) : here], tokens[here + 1 :][:_AFTER]
        spans = self._batch.spans.items()
        domain = next(name for name, span in spans if place.row in span)

        def guesses(top: tuple[tuple[int, float], ...]) -> tuple[Guess, ...]:
            return tuple(Guess(_piece(decode, before, token), share) for token, share in top)

        return Disagreement(
            domain,
            place.kl,
            decode(before),
            _piece(decode, before, tokens[here]),
            decode(after) if after else "",
            guesses(place.reference),
            guesses(place.candidate),
        )


def _likeliest(logits: torch.Tensor) -> tuple[tuple[int, float], ...]:
    """Token and probability of the most likely ones, from [vocab]."""
    top = torch.softmax(logits.double(), dim=-1).topk(min(_TOP, len(logits)))
    return tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def _piece(decode: Decode, before: Sequence[int], token: int) -> str:
    """The text that ``token`` adds: some tokenizers drop the blank before a first word."""
    known = decode(before)
    whole = decode([*before, token])
    return whole[len(known) :] if whole.startswith(known) else decode([token])
