"""What a file says of each layer's mixing block: attention, or one that carries a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.models.mixers import Mixer, ShortConvolution
from tenp_edge.runtime.gguf.metadata_reader import Fields
from tenp_edge.runtime.gguf.runnable_architectures import Architecture, StateKind

_MOST_TAPS = 64


def read_mixers(
    fields: Fields, row: Architecture, attention: Sequence[LayerAttention]
) -> tuple[Mixer | None, ...]:
    """The block of every layer; ``attention``: what it is where the layer attends.

    As llama.cpp has it, a layer without KV heads is the architecture's one that carries a state.
    """
    if row.state is None:
        return tuple(attention)
    kv_heads = fields.integers("attention.head_count_kv")
    heads = {own.kv_heads for own in attention}
    if len(kv_heads) != len(attention) or not {0} | heads >= set(kv_heads):
        raise fields.error("its attention heads contradict each other")
    block = _STATES[row.state](fields)
    return tuple(own if count else block for own, count in zip(attention, kv_heads, strict=True))


def kv_heads_of(fields: Fields, row: Architecture, heads: int) -> int:
    """KV heads of a layer that attends."""
    if row.state is None:
        return fields.integer("attention.head_count_kv", heads)
    return max([1, *(count for count in fields.integers("attention.head_count_kv"))])


def _short_convolution(fields: Fields) -> ShortConvolution:
    taps = fields.integer("shortconv.l_cache")
    if not 2 <= taps <= _MOST_TAPS:
        raise fields.error(f"shortconv.l_cache is {taps}")
    return ShortConvolution(fields.integer("embedding_length"), taps)


_STATES: Mapping[StateKind, Callable[[Fields], Mixer]] = {"short convolution": _short_convolution}
