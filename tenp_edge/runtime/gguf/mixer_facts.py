"""What a file says of each layer's mixing block: attention, or one that carries a state."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence

from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.models.mixers import DeltaNet, Mamba2, Mixer, ShortConvolution
from tenp_edge.runtime.gguf.metadata_reader import Fields
from tenp_edge.runtime.gguf.runnable_architectures import Architecture, StateKind

_MOST_TAPS = 64


def read_mixers(
    fields: Fields, row: Architecture, attention: Sequence[LayerAttention], routed: Container[int]
) -> tuple[Mixer | None, ...]:
    """The block of every layer; ``attention``: what it is where the layer attends.

    As llama.cpp has it, a layer without KV heads is the architecture's one that carries a state,
    or, where it is ``routed`` and such layers are experts alone, has none.
    """
    if row.state is None:
        return tuple(attention)
    if row.recurrent_layers:
        return _listed(fields, row, row.state, attention)
    kv_heads = fields.integers("attention.head_count_kv")
    heads = {own.kv_heads for own in attention}
    if len(kv_heads) != len(attention) or not heads <= set(kv_heads) <= {0} | heads:
        raise fields.error("its attention heads contradict each other")
    block = _STATES[row.state](fields, row)
    mixers: list[Mixer | None] = []
    for layer, (own, count) in enumerate(zip(attention, kv_heads, strict=True)):
        alone = row.experts_alone and layer in routed
        if alone and count:
            raise fields.error(f"layer {layer} both attends and routes")
        mixers.append(None if alone else own if count else block)
    return tuple(mixers)


def _listed(
    fields: Fields, row: Architecture, kind: StateKind, attention: Sequence[LayerAttention]
) -> tuple[Mixer | None, ...]:
    carries = fields.flags("attention.recurrent_layers")
    fields.integer("full_attention_interval", 0)  # For readers that do not know the list.
    if len(carries) != len(attention):
        raise fields.error(f"{len(carries)} recurrent layers of {len(attention)}")
    if all(carries):
        raise fields.error("none of its layers attends")
    block = _STATES[kind](fields, row)
    return tuple(block if state else own for own, state in zip(attention, carries, strict=True))


def kv_heads_of(fields: Fields, row: Architecture, heads: int) -> int:
    """KV heads of a layer that attends."""
    if row.state is None or row.recurrent_layers:
        return fields.integer("attention.head_count_kv", heads)
    return max([1, *fields.integers("attention.head_count_kv")])


def _short_convolution(fields: Fields, row: Architecture) -> ShortConvolution:
    taps = fields.integer("shortconv.l_cache")
    if not 2 <= taps <= _MOST_TAPS:
        raise fields.error(f"shortconv.l_cache is {taps}")
    return ShortConvolution(fields.integer("embedding_length"), taps)


def _mamba2(fields: Fields, row: Architecture) -> Mamba2:
    heads, inner = fields.integer("ssm.time_step_rank"), fields.integer("ssm.inner_size")
    groups, taps = fields.integer("ssm.group_count"), fields.integer("ssm.conv_kernel")
    if inner % heads or heads % groups or not 2 <= taps <= _MOST_TAPS:
        raise fields.error("the sizes of its states contradict each other")
    if row.state_expands and inner != row.state_expands * fields.integer("embedding_length"):
        raise fields.error(f"ssm.inner_size is not {row.state_expands} times the hidden size")
    return Mamba2(heads, inner // heads, fields.integer("ssm.state_size"), groups, taps)


def _delta_net(fields: Fields, row: Architecture) -> DeltaNet:
    keys, values = fields.integer("ssm.group_count"), fields.integer("ssm.time_step_rank")
    size, taps = fields.integer("ssm.state_size"), fields.integer("ssm.conv_kernel")
    if values % keys or fields.integer("ssm.inner_size") != size * values:
        raise fields.error("its heads of state contradict each other")
    if not 2 <= taps <= _MOST_TAPS:
        raise fields.error(f"ssm.conv_kernel is {taps}")
    return DeltaNet(keys, values, size, taps)


_STATES: Mapping[StateKind, Callable[[Fields, Architecture], Mixer]] = {
    "short convolution": _short_convolution,
    "mamba2": _mamba2,
    "gated delta net": _delta_net,
}
