"""What a layer mixes tokens with: attention, or a block that carries a state.

Attention keeps rows of a cache for every token it may see again (`LayerAttention`). The others keep
a state of one size, however many tokens went into it; it cannot be cut back to fewer of them. A new
kind is a class of `Mixer`'s attributes here, chosen by a fact of config.json
(`config.mixer_config`), never by the model's type.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Protocol

Shape = tuple[int, ...]
STATE_VALUE_BYTES = 4  # float32, in our runtime as in llama.cpp


class Mixer(Protocol):
    """One layer's mixing block."""

    @property
    def cache_rows(self) -> Shape:
        """Values per token of each cache tensor; none where nothing is kept by token."""

    @property
    def state_shapes(self) -> Mapping[str, Shape]:
        """Of each state tensor, by name: as ggml counts, row length first, for one sequence. All of
        them are zero before the first token."""


@dataclass(frozen=True)
class ShortConvolution:
    """Gated short convolution (LFM2): of every channel, a token and the ``taps`` - 1 before it.

    Its state is those last inputs of the convolution.
    """

    channels: int
    taps: int
    cache_rows: ClassVar[Shape] = ()

    @property
    def state_shapes(self) -> Mapping[str, Shape]:
        return {"conv": (self.taps - 1, self.channels)}


@dataclass(frozen=True)
class Mamba2:
    """Selective state space behind a convolution (Mamba 2). ``heads`` of ``head_dim`` values, of
    which each has a state of ``state`` numbers; ``groups`` of heads share what is written to it and
    read from it; the convolution sees a token and the ``taps`` - 1 before it.
    """

    heads: int
    head_dim: int
    state: int
    groups: int
    taps: int
    cache_rows: ClassVar[Shape] = ()

    @property
    def inner(self) -> int:
        """Values of all heads."""
        return self.heads * self.head_dim

    @property
    def channels(self) -> int:
        """Of the convolution: the values, and of each group what is written and what is read."""
        return self.inner + 2 * self.groups * self.state

    @property
    def state_shapes(self) -> Mapping[str, Shape]:
        return {
            "conv": (self.taps - 1, self.channels),
            "ssm": (self.state, self.head_dim, self.heads),
        }


@dataclass(frozen=True)
class DeltaNet:
    """Gated delta net (Qwen3-Next): of every value head a matrix that each token corrects.

    ``head_dim``: elements of a query, a key and a value. Each key head serves ``value_heads`` /
    ``key_heads`` value heads. A convolution of ``taps`` tokens, as `ShortConvolution`'s, goes over
    queries, keys and values before. The state is its last inputs, and the matrices (Yang et al.
    2024, https://arxiv.org/abs/2412.06464).
    """

    key_heads: int
    value_heads: int
    head_dim: int
    taps: int
    cache_rows: ClassVar[Shape] = ()

    @property
    def key_size(self) -> int:
        """Queries of a token, and keys, of all heads."""
        return self.key_heads * self.head_dim

    @property
    def value_size(self) -> int:
        """Values of a token, of all heads."""
        return self.value_heads * self.head_dim

    @property
    def channels(self) -> int:
        """Of the convolution: queries, keys and values."""
        return 2 * self.key_size + self.value_size

    @property
    def state_shapes(self) -> Mapping[str, Shape]:
        size = self.head_dim
        return {"conv": (self.taps - 1, self.channels), "memory": (size, size, self.value_heads)}


def state_bytes(mixers: Iterable[Mixer | None]) -> int:
    """Bytes of the state of one sequence, over all layers."""
    shapes = (shape for mixer in mixers if mixer for shape in mixer.state_shapes.values())
    return STATE_VALUE_BYTES * sum(map(prod, shapes))
