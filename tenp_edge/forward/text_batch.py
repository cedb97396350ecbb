"""Text as the forward takes it: sequences by domain, and all domains' sequences as one batch.

Sequences are padded on the right with 0: attention is causal, so what a real token sees never
includes padding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.functional import pad


@dataclass(frozen=True)
class Domain:
    """Sequences of one domain, padded on the right with 0.

    tokens: [n, seq_len] int64; lengths: [n] int64, real tokens of each sequence.
    """

    name: str
    tokens: torch.Tensor
    lengths: torch.Tensor


def token_count(domains: Iterable[Domain]) -> int:
    """Real tokens of all ``domains``."""
    return sum(int(domain.lengths.sum()) for domain in domains)


@dataclass(frozen=True)
class TextBatch:
    """All domains' sequences as one batch, so that a layer's weights are read once for them.

    tokens: [n, seq] int64, as wide as the widest domain; lengths: [n] int64; ``spans``: domain ->
    its range of rows, one domain after the other.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    spans: Mapping[str, range]

    @classmethod
    def of(cls, domains: Sequence[Domain], max_sequences: int | None = None) -> TextBatch:
        """``domains`` (at least one); of each no more than its first ``max_sequences``."""
        width = max(domain.tokens.shape[1] for domain in domains)
        tokens = [
            pad(domain.tokens[:max_sequences], (0, width - domain.tokens.shape[1]))
            for domain in domains
        ]
        spans: dict[str, range] = {}
        start = 0
        for domain, rows in zip(domains, tokens, strict=True):
            spans[domain.name] = range(start, start + len(rows))
            start += len(rows)
        lengths = torch.cat([domain.lengths[:max_sequences] for domain in domains])
        return cls(torch.cat(tokens), lengths, spans)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def seq_len(self) -> int:
        return self.tokens.shape[1]

    @property
    def token_count(self) -> int:
        """Real tokens of all sequences."""
        return int(self.lengths.sum())

    @cached_property
    def active(self) -> torch.Tensor:
        """[n, seq] bool: False on padding."""
        return torch.arange(self.seq_len)[None] < self.lengths[:, None]

    def trimmed(self) -> TextBatch:
        """No wider than the longest sequence."""
        return TextBatch(self.tokens[:, : int(self.lengths.max())], self.lengths, self.spans)

    def runs(self, batch_tokens: int) -> list[slice]:
        """All rows in runs of at most ``batch_tokens`` tokens, whatever their domains."""
        return batches(len(self), self.seq_len, batch_tokens)

    def domain_runs(self, batch_tokens: int) -> list[slice]:
        """The same, but every run is of one domain (`domain_of`)."""
        return [
            slice(span.start + run.start, span.start + run.stop)
            for span in self.spans.values()
            for run in batches(len(span), self.seq_len, batch_tokens)
        ]

    def domain_of(self, run: slice) -> str:
        """The domain of the first of these rows."""
        return next(name for name, span in self.spans.items() if run.start in span)

    @property
    def digest(self) -> str:
        """SHA-256 of names and real tokens, in hexadecimal digits: the identity of the text,
        however wide it is padded."""
        state = hashlib.sha256()
        for name, span in self.spans.items():
            rows = slice(span.start, span.stop)
            state.update(name.encode() + b"\0")
            state.update(self.tokens[rows][self.active[rows]].numpy().tobytes())
            state.update(self.lengths[rows].numpy().tobytes())
        return state.hexdigest()


def batches(count: int, seq_len: int, batch_tokens: int) -> list[slice]:
    """``count`` sequences cut into runs of at most ``batch_tokens`` tokens, at least one each.

    All but the last are of one size, so that the shapes of products repeat: oneDNN compiles a
    kernel for every new one.
    """
    size = max(1, batch_tokens // seq_len)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
