"""What config.json says each layer mixes tokens with: attention or a block that has a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tenp_edge.models.config.reader import ConfigReader, malformed, refuse
from tenp_edge.models.family import Family
from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.models.mixers import Mixer, ShortConvolution

ATTENTION, SHORT_CONVOLUTION = "attention", "short convolution"


def mixers_of(
    config: ConfigReader, family: Family, attention: Sequence[LayerAttention]
) -> tuple[Mixer | None, ...]:
    """The mixing block of every layer; ``attention``: what it is where the layer attends."""
    if not family.layer_kinds:
        return tuple(attention)
    kinds = _layer_kinds(config, family, len(attention))
    states = {kind: _READERS[kind](config) for kind in dict.fromkeys(kinds) if kind in _READERS}
    return tuple(states.get(kind, own) for kind, own in zip(kinds, attention, strict=True))


def _layer_kinds(config: ConfigReader, family: Family, layers: int) -> list[str]:
    """ATTENTION, or a key of `_READERS`, of every layer."""
    types = config.value("layer_types")
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


_MOST_TAPS = 64  # The models have 3; what a convolution of them keeps stays small.
_READERS: Mapping[str, Callable[[ConfigReader], Mixer]] = {SHORT_CONVOLUTION: _short_convolution}
