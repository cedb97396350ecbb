"""What config.json says of attention: sizes of a head, windows and heads of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tenp_edge.models.config.reader import ConfigReader, contradiction, malformed, refuse
from tenp_edge.models.family import Family, LayerKeys
from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.models.model_config import MLA

FULL, SLIDING = "full_attention", "sliding_attention"


def latent_attention(config: ConfigReader) -> MLA:
    """The sizes of latent attention."""
    # q_lora_rank null means "no low-rank query"; an absent key means transformers' default.
    raw, defaults = config.raw, config.defaults
    rank = raw["q_lora_rank"] if "q_lora_rank" in raw else defaults["q_lora_rank"]
    if rank is not None:
        rank = config.integer("q_lora_rank")
    nope, rope = config.integer("qk_nope_head_dim"), config.integer("qk_rope_head_dim")
    if raw.get("qk_head_dim") not in (None, nope + rope):  # their sum, which transformers 5 writes
        raise contradiction(f"qk_head_dim is {raw['qk_head_dim']}, its parts are {nope} and {rope}")
    return MLA(
        q_lora_rank=rank,
        kv_lora_rank=config.integer("kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rope,
        v_head_dim=config.integer("v_head_dim"),
    )


def head_dim_of(config: ConfigReader, mla: MLA | None, hidden: int, heads: int) -> int:
    """Elements of a query or key: as stated, or the heads' share of the hidden size."""
    if mla is not None:
        return mla.qk_nope_head_dim + mla.qk_rope_head_dim
    explicit = config.value("head_dim")
    if explicit is None and hidden % heads:
        raise contradiction(f"hidden_size {hidden} does not divide by {heads} heads")
    return hidden // heads if explicit is None else config.integer("head_dim")


def windows_of(config: ConfigReader, family: Family, layers: int) -> list[int | None]:
    """The window of each layer, None where it looks at everything."""
    every, types = family.full_attention_every, config.value("layer_types")
    if not every or config.value("sliding_window") is None:
        return [None] * layers
    if types is None:
        types = [SLIDING if (layer + 1) % every else FULL for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise malformed("layer_types", types, f"a list of {layers} layers")
    for kind in types:
        if kind not in (FULL, SLIDING):
            raise refuse(f"layer_types with {kind!r}", f"{FULL}, {SLIDING}")
    window = config.integer("sliding_window")
    windows = [window if kind == SLIDING else None for kind in types]
    # transformers lets the last layer of such a family see everything, whatever is said.
    return windows if family.layer_keys is None else [*windows[:-1], None]


def attention_layers(
    config: ConfigReader, family: Family, plain: LayerAttention, windows: Sequence[int | None]
) -> tuple[LayerAttention, ...]:
    """Every layer: ``plain`` with its window, or the geometry of those that see everything."""
    keys = family.layer_keys
    if keys is None:
        return tuple(replace(plain, window=window) for window in windows)
    shared = config.flag(keys.shared_values)
    return tuple(
        _full_layer(config, keys, plain, layer, shared=shared)
        if window is None
        else replace(plain, window=window)
        for layer, window in enumerate(windows)
    )


def _full_layer(
    config: ConfigReader, keys: LayerKeys, plain: LayerAttention, layer: int, *, shared: bool
) -> LayerAttention:
    """A layer that sees everything, in either spelling of its geometry."""
    key, default = keys.head_dim
    written = config.value(keys.overrides, default={})
    stated = written.get(str(layer), {}) if isinstance(written, dict) else None
    if not isinstance(stated, dict):
        raise malformed(keys.overrides, written, "an object of layers")
    layer_config = config.with_values(
        {
            key: stated.get("head_dim", config.value(key, default=default)),
            keys.kv_heads: stated.get("num_key_value_heads", config.value(keys.kv_heads)),
        }
    )
    kv_heads = (
        layer_config.integer(keys.kv_heads, default=plain.kv_heads) if shared else plain.kv_heads
    )
    if plain.heads % kv_heads:
        raise contradiction(
            f"{plain.heads} attention heads do not divide by {kv_heads} key/value heads"
        )
    return LayerAttention(plain.heads, kv_heads, layer_config.integer(key), own_values=not shared)
