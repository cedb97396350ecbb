"""What candidates are measured on: held-out text, cloze questions and sums made from it.

Each measure is a block of sequences and what its scores mean. No question is downloaded: a cloze
question asks which of four passages really followed, arithmetic whether the results in worked
solutions ("22 + 13 = 35", "#### 72") are the model's first choice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from tenp_edge.calibration.text.domains import make_domains
from tenp_edge.evaluation.divergence import concatenate, scored_positions, scored_rows, summarise
from tenp_edge.evaluation.evaluator import Block, RowScores
from tenp_edge.forward.text_batch import Domain

CHOICES = 4
CONTEXT_TOKENS, ANSWER_TOKENS = 40, 8
_RESULT = re.compile(r"(?<==)\s*\$?\s*(\d+)\b")
_FINAL = re.compile(r"(?<=####)\s*(-?\d+)\b")


class Measure(Protocol):
    """A block and what the scores of a candidate on it come to, as JSON values."""

    @property
    def block(self) -> Block: ...

    def result(self, rows: Sequence[RowScores]) -> dict[str, Any]: ...


@dataclass(frozen=True)
class TextMeasure:
    """KL, perplexity and agreement on a domain's text: `divergence.DomainScores`."""

    block: Block

    @classmethod
    def of(cls, domain: Domain) -> TextMeasure:
        scored = scored_rows(domain, "--eval-data")
        spans = tuple(scored_positions(length) for length in scored.lengths.tolist())
        return cls(Block(domain.name, scored.tokens, spans))

    def result(self, rows: Sequence[RowScores]) -> dict[str, Any]:
        scores = concatenate(row.scores for row in rows)
        return summarise(self.block.name, len(rows), scores).to_json()


@dataclass(frozen=True)
class Cloze:
    """Questions of ``CHOICES`` rows each, the first of which is the true continuation."""

    block: Block

    @classmethod
    def of(
        cls, name: str, texts: Sequence[str], tokenizer: Any, questions: int, seed: int
    ) -> Cloze | None:
        """At most ``questions`` from ``texts``; None where there is too little text.

        The wrong answers are what followed other passages of the domain.
        """
        length = CONTEXT_TOKENS + ANSWER_TOKENS
        (domain,) = make_domains({name: texts}, tokenizer, questions, length, seed)
        rows = domain.tokens[domain.lengths == length]
        if len(rows) < CHOICES:
            return None
        choices = [rows]
        for shift in range(1, CHOICES):
            answers = rows[:, CONTEXT_TOKENS:].roll(shift, dims=0)
            choices.append(torch.cat([rows[:, :CONTEXT_TOKENS], answers], dim=1))
        tokens = torch.stack(choices, dim=1).flatten(0, 1)
        span = range(CONTEXT_TOKENS - 1, length - 1)
        return cls(Block(name, tokens, (span,) * len(tokens)))

    def result(self, rows: Sequence[RowScores]) -> dict[str, Any]:
        losses = torch.stack([row.scores.candidate_nll.sum() for row in rows])
        right = losses.reshape(-1, CHOICES).argmin(dim=1) == 0
        return {"questions": len(right), "accuracy": float(right.double().mean())}


@dataclass(frozen=True)
class Arithmetic:
    """Results in worked solutions, the steps before them given: a result counts when each of its
    tokens is the first choice, which is when greedy decoding would write it.

    ``places``: for each row the token ranges of its results, counted from the row's span; the
    last is the final answer.
    """

    block: Block
    places: tuple[tuple[range, ...], ...]

    @classmethod
    def of(
        cls, name: str, texts: Sequence[str], tokenizer: Any, items: int, longest: int
    ) -> Arithmetic | None:
        """The first ``items`` texts with a final answer of at most ``longest`` tokens, if any."""
        rows: list[torch.Tensor] = []
        spans: list[range] = []
        places: list[tuple[range, ...]] = []
        for text in texts:
            if len(rows) == items:
                break
            final = _FINAL.search(text)
            if final is None:
                continue
            ids, ranges = _results(text[: final.end()], tokenizer)
            if len(ids) > longest or not ranges or ranges[-1].stop != len(ids):
                continue
            first = ranges[0].start - 1
            rows.append(torch.tensor(ids))
            spans.append(range(first, len(ids) - 1))
            places.append(tuple(range(r.start - 1 - first, r.stop - 1 - first) for r in ranges))
        if not rows:
            return None
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return cls(Block(name, tokens, tuple(spans)), tuple(places))

    def result(self, rows: Sequence[RowScores]) -> dict[str, Any]:
        steps, finals = [], []
        for row, places in zip(rows, self.places, strict=True):
            right = [bool(row.hits[place.start : place.stop].all()) for place in places]
            steps += right[:-1]
            finals.append(right[-1])
        return {
            "answers": len(finals),
            "exact_answers": sum(finals) / len(finals),
            "steps": len(steps),
            "exact_steps": sum(steps) / len(steps) if steps else 0.0,
        }


def _results(text: str, tokenizer: Any) -> tuple[list[int], list[range]]:
    """The tokens of ``text``, which ends in a final answer, and where its results lie."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    matches = sorted(
        [*_RESULT.finditer(text), *_FINAL.finditer(text)], key=lambda match: match.start(1)
    )
    ranges = []
    for match in matches:
        start = _common(ids, tokenizer(text[: match.start(1)], add_special_tokens=False))
        stop = _common(ids, tokenizer(text[: match.end(1)], add_special_tokens=False))
        if 0 < start < stop:
            ranges.append(range(start, stop))
    return ids, ranges


def _common(ids: Sequence[int], other: Mapping[str, Sequence[int]]) -> int:
    """How many tokens at the start are the same."""
    count = 0
    for left, right in zip(ids, other["input_ids"], strict=False):
        if left != right:
            break
        count += 1
    return count
