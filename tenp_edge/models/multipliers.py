"""Numbers that scale a model between its blocks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Multipliers:
    """What embeddings, attention scores (None: 1 / sqrt(head size)), all that a block adds to the
    stream, and logits are multiplied by."""

    embedding: float = 1.0
    attention: float | None = None
    residual: float = 1.0
    logits: float = 1.0


UNSCALED = Multipliers()
