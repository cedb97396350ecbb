"""What config.json says each layer mixes tokens with: attention, a block that carries a state, or
nothing, where a layer is experts alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from tenp_edge.models.config.reader import ConfigReader, contradiction, malformed, refuse
from tenp_edge.models.family import Family
from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.models.mixers import DeltaNet, Mamba2, Mixer, ShortConvolution

ATTENTION, SHORT_CONVOLUTION, MAMBA2 = "attention", "short convolution", "mamba2"
DELTA_NET, EXPERTS = "gated delta net", "experts"


def mixers_of(
    config: ConfigReader, family: Family, attention: Sequence[LayerAttention]
) -> tuple[Mixer | None, ...]:
    """The mixing block of every layer; ``attention``: what it is where the layer attends."""
    if not family.layer_kinds:
        return tuple(attention)
    kinds = layer_kinds(config, family, len(attention))
    if ATTENTION not in kinds:
        raise contradiction("layer_types names no layer that attends")
    states: dict[str, Mixer | None] = {EXPERTS: None}
    states |= {kind: _READERS[kind](config) for kind in dict.fromkeys(kinds) if kind in _READERS}
    return tuple(states.get(kind, own) for kind, own in zip(kinds, attention, strict=True))


def listed_layers(config: ConfigReader, family: Family) -> int | None:
    """How many layers the list of their kinds has, None without one."""
    types = _layer_types(config, family) if family.layer_kinds else None
    return len(types) if isinstance(types, list) and types else None


def _layer_types(config: ConfigReader, family: Family) -> object:
    """What config.json lists, in words or in letters."""
    types, letters = config.value("layer_types"), config.value("hybrid_override_pattern")
    if not family.layer_letters or letters is None:
        return types
    if not isinstance(letters, str):
        raise malformed("hybrid_override_pattern", letters, "a string of letters")
    spelled = [family.layer_letters.get(letter, letter) for letter in letters]
    if types is not None and types != spelled:
        raise contradiction(
            f"hybrid_override_pattern is {letters[:60]}, layers_block_type says otherwise"
        )
    return spelled


def layer_kinds(config: ConfigReader, family: Family, layers: int) -> list[str]:
    """ATTENTION, EXPERTS, or a key of `_READERS`, of every layer: as listed, else every so many
    attend."""
    types = _layer_types(config, family)
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


def _mamba2(config: ConfigReader) -> Mamba2:
    heads, groups = config.integer("mamba_num_heads"), config.integer("n_groups")
    if config.value("mamba_head_dim") == "auto":
        config = config.with_values({"mamba_head_dim": 2 * config.integer("hidden_size") // heads})
    taps = config.integer("conv_kernel", most=_MOST_TAPS)
    if taps < 2:
        raise refuse(f"conv_kernel = {taps}", "2 or more")
    if heads % groups:
        raise contradiction(f"{heads} Mamba heads do not divide into {groups} groups")
    head_dim, hidden = config.integer("mamba_head_dim"), config.integer("hidden_size")
    expand = config.value("mamba_expand")
    if expand is not None and heads * head_dim != expand * hidden:
        raise contradiction(
            f"{heads} Mamba heads of {head_dim} are not mamba_expand = {expand} times {hidden}"
        )
    return Mamba2(heads, head_dim, config.integer("ssm_state_size"), groups, taps)


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
    MAMBA2: _mamba2,
    DELTA_NET: _delta_net,
}
