"""How far one model's predictions are from another's: the numbers of llama-perplexity. Pure.

For every scored token, with p the reference's distribution and q the candidate's:
KL = sum p (log p - log q), in nats; same top = the two most likely tokens agree; delta p =
q(true token) - p(true token); perplexity = exp(mean -log p(true token)). Definitions as in
llama.cpp's tools/perplexity (--kl-divergence), including its linearly interpolated percentile.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tenp_edge.errors import UserError
from tenp_edge.forward.text_batch import Domain

# Rows of two float64 distributions over 152k tokens that are held at once: 16 x 2.4 MB.
_ROWS = 16


@dataclass(frozen=True)
class TokenScores:
    """One entry per scored token, float64 [tokens] (``same_top`` bool). ``kl`` and the negative
    log-likelihoods in nats, ``delta_p`` a difference of probabilities."""

    kl: torch.Tensor
    reference_nll: torch.Tensor
    candidate_nll: torch.Tensor
    delta_p: torch.Tensor
    same_top: torch.Tensor


@dataclass(frozen=True)
class DomainScores:
    """A row of the report. KL in nats per token; delta p and ``same_top`` as shares of 1.
    ``kl_error``: the standard error of ``mean_kl``, from sequence to sequence; None of one."""

    domain: str
    sequences: int
    tokens: int
    mean_kl: float
    kl_99: float
    max_kl: float
    same_top: float
    reference_perplexity: float
    candidate_perplexity: float
    perplexity_ratio: float
    mean_delta_p: float
    rms_delta_p: float
    kl_error: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def scored_positions(length: int) -> range:
    """Positions of a sequence of ``length`` tokens whose prediction counts: the second half.

    Each has at least half the sequence as context; the last has no next token to be compared with.
    """
    return range(length // 2, length - 1)


def scored_rows(domain: Domain, flag: str) -> Domain:
    """The sequences of ``domain`` that have a token to score. Raises UserError, naming ``flag``,
    without any."""
    kept = torch.tensor([bool(scored_positions(length)) for length in domain.lengths.tolist()])
    if not kept.any():
        raise UserError(
            f"domain '{domain.name}' has no sequence of at least 3 tokens",
            f"{flag} {domain.name}=FILE with more text",
        )
    return Domain(domain.name, domain.tokens[kept], domain.lengths[kept])


def score_tokens(
    reference: torch.Tensor, candidate: torch.Tensor, targets: torch.Tensor
) -> TokenScores:
    """Compare two sets of logits [tokens, vocab] on the true next tokens [tokens], in float64."""
    parts = []
    for start in range(0, len(targets), _ROWS):
        rows = slice(start, start + _ROWS)
        parts.append(ReferenceTokens(reference[rows], targets[rows]).score(candidate[rows]))
    return concatenate(parts)


class ReferenceTokens:
    """The reference's side of the comparison, for many candidates: ``logits`` [tokens, vocab] and
    the true next tokens ``targets`` [tokens]. Holds float64 tables of that size twice."""

    def __init__(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        self.targets = targets
        self._log_p = torch.log_softmax(logits.double(), dim=-1)
        self._p, self._top = self._log_p.exp(), self._log_p.argmax(dim=-1)
        self._true_p = self._log_p.gather(1, targets[:, None])[:, 0]
        self._entropy = torch.linalg.vecdot(self._p, self._log_p)

    def score(self, logits: torch.Tensor) -> TokenScores:
        """The candidate's ``logits`` [tokens, vocab] against the reference's."""
        log_q = torch.log_softmax(logits.double(), dim=-1)
        true_q = log_q.gather(1, self.targets[:, None])[:, 0]
        # sum p log p - sum p log q, each of the order of 1: rounding can leave -1e-15 where the two
        # are nearly equal, and a divergence is never negative.
        cross = torch.linalg.vecdot(self._p, log_q)
        return TokenScores(
            kl=(self._entropy - cross).clamp(min=0),
            reference_nll=-self._true_p,
            candidate_nll=-true_q,
            delta_p=true_q.exp() - self._true_p.exp(),
            same_top=self._top == log_q.argmax(dim=-1),
        )


def concatenate(parts: Iterable[TokenScores]) -> TokenScores:
    """The scores of all ``parts``, in order."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return TokenScores(*(torch.cat(column) for column in columns))


def summarise(domain: str, sequences: int, scores: TokenScores) -> DomainScores:
    """Means and tails over the tokens of ``scores`` (at least one)."""
    reference, candidate = scores.reference_nll.mean(), scores.candidate_nll.mean()
    return DomainScores(
        domain=domain,
        sequences=sequences,
        tokens=len(scores.kl),
        mean_kl=float(scores.kl.mean()),
        kl_99=_percentile(scores.kl, 0.99),
        max_kl=float(scores.kl.max()),
        same_top=float(scores.same_top.double().mean()),
        reference_perplexity=float(reference.exp()),
        candidate_perplexity=float(candidate.exp()),
        perplexity_ratio=float((candidate - reference).exp()),
        mean_delta_p=float(scores.delta_p.mean()),
        rms_delta_p=float(scores.delta_p.square().mean().sqrt()),
    )


def standard_error(means: Sequence[float]) -> float | None:
    """Of the mean of ``means``, one a sequence; None of fewer than two."""
    if len(means) < 2:
        return None
    return float(torch.tensor(means, dtype=torch.float64).std() / len(means) ** 0.5)


def _percentile(values: torch.Tensor, share: float) -> float:
    """The value below which ``share`` of ``values`` lie, interpolated. Any number of values
    (torch.quantile stops at 16 million)."""
    ordered = values.sort().values
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (place - low) * (ordered[high] - ordered[low]))
