"""What config.json says of attention: sizes, windows and rotation of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.models.config_reader import BELONGS, MOST, Reader, contradiction, finite, malformed
from tenp_edge.models.family import MLA, Family, LayerKeys, Rope, refuse
from tenp_edge.models.layer_attention import LayerAttention

FULL, SLIDING = "full_attention", "sliding_attention"
_ROPE_KINDS = ("default", "linear", "yarn")
_PROPORTIONAL = "proportional"
_ROPE_KEYS = frozenset(
    "type rope_type rope_theta factor original_max_position_embeddings attention_factor "
    "beta_fast beta_slow mscale mscale_all_dim truncate partial_rotary_factor".split()
)


def read_mla(config: Reader) -> MLA:
    """Sizes of latent attention."""
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


def read_head_dim(config: Reader, mla: MLA | None, hidden: int, heads: int) -> int:
    """Elements of a query's head."""
    if mla is not None:
        return mla.qk_nope_head_dim + mla.qk_rope_head_dim
    explicit = config.value("head_dim")
    if explicit is None and hidden % heads:
        raise contradiction(f"hidden_size {hidden} does not divide by {heads} heads")
    return hidden // heads if explicit is None else config.integer("head_dim")


def read_windows(config: Reader, family: Family, layers: int) -> list[int | None]:
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


def read_attention_layers(
    config: Reader, family: Family, plain: LayerAttention, windows: Sequence[int | None]
) -> tuple[LayerAttention, ...]:
    """Every layer's attention: ``plain`` with its window; or, without one, of its own geometry."""
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
    config: Reader, keys: LayerKeys, plain: LayerAttention, layer: int, *, shared: bool
) -> LayerAttention:
    """A layer that sees everything, in either spelling of its geometry."""
    key, default = keys.head_dim
    written = config.value(keys.overrides, default={})
    stated = written.get(str(layer), {}) if isinstance(written, dict) else None
    if not isinstance(stated, dict):
        raise malformed(keys.overrides, written, "an object of layers")
    own = config.with_values(
        {
            key: stated.get("head_dim", config.value(key, default=default)),
            keys.kv_heads: stated.get("num_key_value_heads", config.value(keys.kv_heads)),
        }
    )
    kv_heads = own.integer(keys.kv_heads, default=plain.kv_heads) if shared else plain.kv_heads
    if plain.heads % kv_heads:
        raise contradiction(
            f"{plain.heads} attention heads do not divide by {kv_heads} key/value heads"
        )
    return LayerAttention(plain.heads, kv_heads, own.integer(key), own_values=not shared)


def read_ropes(config: Reader, family: Family) -> dict[str, Rope]:
    """The rotary embedding by type of layer; one for all but where the family has two."""
    raw = config.raw
    key = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    stated = config.value("rope_parameters", "rope_scaling", default={})
    if not isinstance(stated, dict):
        raise UserError(f"config.json: {key} is {stated!r}, not an object", BELONGS)
    if family.layer_keys is None:
        return dict.fromkeys((FULL, SLIDING), _rope(config, key, stated, _ROPE_KINDS))
    if set(stated) != {FULL, SLIDING} or not all(isinstance(v, dict) for v in stated.values()):
        raise malformed(key, stated, f"an object of {FULL} and {SLIDING}")
    kinds = {FULL: (*_ROPE_KINDS, _PROPORTIONAL), SLIDING: _ROPE_KINDS}
    return {kind: _rope(config, f"{key}.{kind}", stated[kind], kinds[kind]) for kind in kinds}


def _rope(config: Reader, key: str, stated: Mapping[str, Any], kinds: Sequence[str]) -> Rope:
    scaling = dict(stated)
    unknown = sorted(set(scaling) - _ROPE_KEYS)
    if unknown:
        raise refuse(f"rope key {', '.join(unknown)}", ", ".join(sorted(_ROPE_KEYS)))
    kind = scaling.pop("rope_type", None) or scaling.pop("type", None) or "default"
    scaling.pop("type", None)
    stated_theta = scaling.pop("rope_theta", None)
    theta = config.value("rope_theta") if stated_theta is None else stated_theta
    if kind not in kinds:
        raise refuse(f"rope type {kind!r}", ", ".join(kinds))
    part = 1.0
    if kind == _PROPORTIONAL:
        _check_proportional(key, scaling)
    else:
        part = _rotary_part(config, scaling.pop("partial_rotary_factor", None))
    _check_scaling(key, kind, scaling)
    return Rope(theta=finite("rope_theta", theta), kind=kind, scaling=scaling, part=part)


def _rotary_part(config: Reader, stated: object) -> float:
    """The share of a head that is rotated, as ``stated`` among the rope's keys or beside them."""
    usual, beside = config.family.rotary_part, config.value("partial_rotary_factor")
    if stated is not None and beside is not None and stated != beside:
        raise contradiction(f"partial_rotary_factor is {beside} and {stated}")
    said = stated if stated is not None else beside
    part = finite("partial_rotary_factor", usual if said is None else said)
    if part > 1 or (part != 1 and usual == 1):
        raise refuse(f"partial_rotary_factor = {part}", "1.0")
    return part


def _check_proportional(section: str, scaling: Mapping[str, Any]) -> None:
    """The first pairs of a head turn, the rest stands: which part turns, and at no other scale."""
    if scaling.get("factor") not in (None, 1, 1.0):
        raise refuse(f"{section}.factor = {scaling['factor']} of the type proportional", "1.0")
    part = scaling.get("partial_rotary_factor")
    if part is not None and not 0 < finite(f"{section}.partial_rotary_factor", part) <= 1:
        raise malformed(f"{section}.partial_rotary_factor", part, "a share of a head")


def _check_scaling(section: str, kind: str, scaling: Mapping[str, Any]) -> None:
    """Linear and YaRN scaling need a factor; whatever else is there must be a number."""
    for key, value in scaling.items():
        if value is not None and key != "truncate":
            finite(f"{section}.{key}", value, zero=True)
    original = scaling.get("original_max_position_embeddings")
    if original is not None and (not isinstance(original, int) or not 0 < original <= MOST):
        raise malformed(f"{section}.original_max_position_embeddings", original, "a length")
    factor = scaling.get("factor")
    if kind in ("default", _PROPORTIONAL):
        return
    if factor is None:
        raise contradiction(f"{section} of the type {kind} has no factor")
    if factor < 1:
        raise malformed(f"{section}.factor", factor, "1 or more")
