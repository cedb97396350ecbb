"""What config.json says each layer mixes tokens with: attention or a block that has a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tenp_edge.models.config.reader import ConfigReader, contradiction, malformed, refuse
from tenp_edge.models.family import Family
from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.models.mixers import DeltaNet, Mixer, ShortConvolution

ATTENTION, SHORT_CONVOLUTION = "attention", "short convolution"
DELTA_NET = "gated delta net"


def mixers_of(
    config: ConfigReader, family: Family, attention: Sequence[LayerAttention]
) -> tuple[Mixer | None, ...]:
    """The mixing block of every layer; ``attention``: what it is where the layer attends."""
    if not family.layer_kinds:
        return tuple(attention)
    kinds = _layer_kinds(config, family, len(attention))
    if ATTENTION not in kinds:
        raise contradiction("layer_types names no layer that attends")
    states = {kind: _READERS[kind](config) for kind in dict.fromkeys(kinds) if kind in _READERS}
    return tuple(states.get(kind, own) for kind, own in zip(kinds, attention, strict=True))


def _layer_kinds(config: ConfigReader, family: Family, layers: int) -> list[str]:
    """ATTENTION, or a key of `_READERS`, of every layer: as listed, else every so many attend."""
    types = config.value("layer_types")
    if types is None and config.value("full_attention_interval") is not None:
        every = config.integer("full_attention_interval")
        if every > layers:
            raise contradiction(
                f"full_attention_interval is {every}, the model has {layers} layers"
            )
        state = next(kind for kind in family.layer_kinds.values() if kind != ATTENTION)
        return [state if (layer + 1) % every else ATTENTION for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise malformed("layer_types", types, f"a list of {layers} layers")
    for kind in types:
        if not isinstance(kind, str) or kind not in family.layer_kinds:
            raise refuse(f"layer_types with {kind!r}", ", ".join(family.layer_kinds))
    return [family.layer_kinds[kind] for kind in types]


def _short_convolution(config: ConfigReader) -> ShortConvolution:
    taps = config.integer("conv_L_cache", most=_MOST_TAPS)
    if taps < 2:
        raise refuse(f"conv_L_cache = {taps}", "2 or more")
    return ShortConvolution(config.integer("hidden_size"), taps)


def _delta_net(config: ConfigReader) -> DeltaNet:
    keys, values = (config.integer(f"linear_num_{kind}_heads") for kind in ("key", "value"))
    size, value_size = (config.integer(f"linear_{kind}_head_dim") for kind in ("key", "value"))
    taps = config.integer("linear_conv_kernel_dim", most=_MOST_TAPS)
    if values % keys:
        raise contradiction(f"{values} value heads do not divide by {keys} key heads")
    if size != value_size:
        raise refuse(f"linear_value_head_dim = {value_size}", f"linear_key_head_dim, {size}")
    if taps < 2:
        raise refuse(f"linear_conv_kernel_dim = {taps}", "2 or more")
    return DeltaNet(keys, values, size, taps)


_MOST_TAPS = 64  # The models have 3; what a convolution of them keeps stays small.
_READERS: Mapping[str, Callable[[ConfigReader], Mixer]] = {
    SHORT_CONVOLUTION: _short_convolution,
    DELTA_NET: _delta_net,
}
