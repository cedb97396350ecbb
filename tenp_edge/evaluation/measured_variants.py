"""What variants of a model cost on the text of several domains, beside the dense model.

`evaluator` runs them together; here are their scores by domain, for refining, probes and types.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tenp_edge.evaluation.divergence import (
    DomainScores,
    TokenScores,
    concatenate,
    scored_positions,
    summarise,
)
from tenp_edge.evaluation.evaluator import Block, DenseStates, Evaluator, LayerCache
from tenp_edge.evaluation.variants import Variant
from tenp_edge.forward.hidden_states import SPILL_BYTES
from tenp_edge.forward.text_batch import Domain, TextBatch
from tenp_edge.progress import QUIET, Progress


@dataclass(frozen=True)
class Measured:
    """One variant against the dense model: a row per domain, and all tokens together."""

    domains: tuple[DomainScores, ...]
    overall: DomainScores
    sequence_kl: tuple[float, ...]
    """Nats per token of every sequence: how sure the mean is."""

    @property
    def mean_kl(self) -> float:
        """Nats per token, every domain weighing the same."""
        return sum(row.mean_kl for row in self.domains) / len(self.domains)


def measure_variants(
    cache: LayerCache,
    variants: Sequence[Variant],
    domains: Sequence[Domain],
    *,
    device: torch.device,
    dtype: torch.dtype,
    work: Path | None = None,
    spill_bytes: int = SPILL_BYTES,
    progress: Progress = QUIET,
    what: str = "plans",
    positions: Callable[[int], range] = scored_positions,
    dense: DenseStates | None = None,
) -> list[Measured]:
    """Each of ``variants`` of the model in ``cache`` against the dense model on ``domains``, in
    their order; ``what`` they are is said while they run.

    Scored at the ``positions`` of a sequence's length: the second half, as `validation` does.
    ``dense`` is filled with the dense model's states; filled already, it saves that forward. Hidden
    states go to files in ``work`` when those of all variants together are above ``spill_bytes``.
    Raises UserError for plans of another checkpoint and tokens that the model does not have.
    """
    text = TextBatch.of(domains)
    spans = tuple(positions(length) for length in text.lengths.tolist())
    evaluator = Evaluator(
        cache, device=device, dtype=dtype, work=work, spill_bytes=spill_bytes, progress=progress
    )
    block = Block("all domains", text.tokens, spans)
    title = f"measuring {len(variants)} {what}"
    ((_, scored),) = evaluator.measure(variants, [block], title, dense)
    return [_summary(text, [row.scores for row in rows]) for rows in scored]


def _summary(text: TextBatch, scores: Sequence[TokenScores]) -> Measured:
    by_domain = tuple(
        summarise(name, len(span), concatenate(scores[row] for row in span))
        for name, span in text.spans.items()
    )
    overall = summarise("overall", len(scores), concatenate(scores))
    return Measured(by_domain, overall, tuple(float(row.kl.mean()) for row in scores))
