"""What the metadata says of attention: heads, windows, rotation; as config.json would say it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import numpy as np

from tenp_edge.disk import read_range
from tenp_edge.exporters.gguf.architectures import NAMES
from tenp_edge.exporters.gguf.source.told import Raw, Told
from tenp_edge.models.config.attention_config import FULL, SLIDING
from tenp_edge.models.config.mixer_config import (
    ATTENTION,
    DELTA_NET,
    EXPERTS,
    MAMBA2,
    SHORT_CONVOLUTION,
)
from tenp_edge.runtime.gguf.rope_facts import YARN_TRUNCATE
from tenp_edge.runtime.gguf.yarn import BETA_FAST, BETA_SLOW

_STANDING = 1e29  # a divisor of a frequency that stands still is larger


def attention_facts(told: Told) -> Raw:
    """All of it, in groups of keys that facts of the rows choose."""
    heads = _latent if told.family.attention == "mla" else _grouped
    ropes = _layer_ropes if told.row.graph.by_layer else _one_rope
    return {**heads(told), **ropes(told), **_windows(told), **_layer_kinds(told)}


def _biases(told: Told) -> Raw:
    family, raw = told.family, {}
    for key, name in ((family.o_bias_key, "attn_output"), (family.qkv_bias_key, "attn_q")):
        if key is not None:
            raw[key] = told.in_layers(f"{name}.bias")
    if family.qk_norm_key is not None:
        raw[family.qk_norm_key] = told.in_layers("attn_q_norm.weight")
    return raw


def _grouped(told: Told) -> Raw:
    fields, keys = told.fields, told.family.layer_keys
    heads, hidden = fields.integer("attention.head_count"), fields.integer("embedding_length")
    head_dim = fields.integer("attention.key_length", max(1, hidden // heads))
    if keys is None:
        kv_heads = max(_kv_heads(told), default=heads)
        return {"num_key_value_heads": kv_heads, "head_dim": head_dim, **_biases(told)}
    within, counts = _pattern(told), fields.integers("attention.head_count_kv")
    if len(counts) != told.layers:
        raise fields.error(f"{len(counts)} numbers of KV heads for {told.layers} layers")
    full = within.index(False) if False in within else 0
    windowed = within.index(True) if True in within else full
    shared = f"blk.{full}.attn_v.weight" not in told.parts.tensors
    return {
        "head_dim": fields.integer("attention.key_length_swa", head_dim),
        "num_key_value_heads": counts[windowed],
        keys.head_dim[0]: head_dim,
        keys.kv_heads: counts[full],
        keys.shared_values: shared,
        **_biases(told),
    }


def _kv_heads(told: Told) -> list[int]:
    """The numbers that the file gives: one, or one a layer, 0 where a layer does not attend."""
    key = "attention.head_count_kv"
    if not told.has(key):
        return []
    one = isinstance(told.parts.header.fields[f"{told.prefix}.{key}"], int)
    return [told.fields.integer(key)] if one else told.fields.integers(key)


def _short_convolution(told: Told) -> Raw:
    return {"conv_L_cache": told.fields.integer("shortconv.l_cache")}


def _mamba2(told: Told) -> Raw:
    heads, inner = told.fields.integer("ssm.time_step_rank"), told.fields.integer("ssm.inner_size")
    return {
        "mamba_num_heads": heads,
        "mamba_head_dim": max(1, inner // heads),
        "ssm_state_size": told.fields.integer("ssm.state_size"),
        "n_groups": told.fields.integer("ssm.group_count"),
        "conv_kernel": told.fields.integer("ssm.conv_kernel"),
    }


def _delta_net(told: Told) -> Raw:
    size = told.fields.integer("ssm.state_size")
    return {
        "linear_num_key_heads": told.fields.integer("ssm.group_count"),
        "linear_num_value_heads": told.fields.integer("ssm.time_step_rank"),
        "linear_key_head_dim": size,
        "linear_value_head_dim": size,
        "linear_conv_kernel_dim": told.fields.integer("ssm.conv_kernel"),
    }


# A tensor that only layers of the kind have, and what says its sizes.
_KINDS: dict[str, tuple[str, Callable[[Told], Raw]]] = {
    SHORT_CONVOLUTION: ("shortconv.conv.weight", _short_convolution),
    MAMBA2: ("ssm_conv1d.weight", _mamba2),
    DELTA_NET: ("ssm_conv1d.weight", _delta_net),
    EXPERTS: ("ffn_gate_inp.weight", lambda _: {}),
}


def _layer_kinds(told: Told) -> Raw:
    """Which layers carry a state or are experts alone, by the tensors that they have."""
    names = {what: name for name, what in [*told.family.layer_kinds.items()][::-1]}
    if not names:
        return {}
    types = [names[ATTENTION]] * told.layers
    raw: Raw = {}
    for what in names.keys() & _KINDS.keys():
        tensor, sizes = _KINDS[what]
        found = [x for x in range(told.layers) if f"blk.{x}.{tensor}" in told.parts.tensors]
        types = [names[what] if layer in found else kind for layer, kind in enumerate(types)]
        raw |= sizes(told) if found else {}
    for layer, kind in enumerate(types):
        if kind == names[ATTENTION]:
            _require_attention(told, layer)
    return {"layer_types": types, **raw}


def _require_attention(told: Told, layer: int) -> None:
    """Raise UserError for a layer that seems to attend because its state is of no known kind."""
    prefix, tensors = f"blk.{layer}.", told.parts.tensors
    if f"{prefix}attn_q.weight" in tensors:
        return
    known = tuple(prefix + start for start in ("attn_", "ffn_", "exp_probs"))
    other = [n for n in sorted(tensors) if n.startswith(prefix) and not n.startswith(known)]
    raise told.fields.error(
        f"layer {layer} mixes tokens by what is not known: {other[0]}"
        if other
        else f"layer {layer} neither attends nor carries a state"
    )


def _latent(told: Told) -> Raw:
    fields = told.fields
    rope, rank = fields.integer("rope.dimension_count"), fields.integer("attention.kv_lora_rank")
    # Files from before llama.cpp absorbed kv_b say the sizes of the heads themselves.
    suffix = "_mla" if told.has("attention.key_length_mla") else ""
    head = fields.integer(f"attention.key_length{suffix}")
    if head <= rope:
        raise fields.error(f"a head of {head} has {rope} rotated elements")
    return {
        "num_key_value_heads": fields.integer("attention.head_count"),
        "q_lora_rank": fields.integer("attention.q_lora_rank", 0) or None,
        "kv_lora_rank": rank,
        "qk_nope_head_dim": head - rope,
        "qk_rope_head_dim": rope,
        "v_head_dim": fields.integer(f"attention.value_length{suffix}"),
        **_biases(told),
    }


def _windows(told: Told) -> Raw:
    family, fields = told.family, told.fields
    every = family.full_attention_every
    if not every or not told.has("attention.sliding_window"):
        return {}
    within = (
        _pattern(told)
        if told.row.graph.by_layer
        else [bool((layer + 1) % every) for layer in range(told.layers)]
    )
    return {
        "sliding_window": fields.integer("attention.sliding_window"),
        "layer_types": [SLIDING if inside else FULL for inside in within],
    }


def _pattern(told: Told) -> list[bool]:
    """Whether each layer sees a window."""
    within = told.fields.flags("attention.sliding_window_pattern")
    if len(within) != told.layers:
        raise told.fields.error(f"{len(within)} windows for {told.layers} layers")
    return within


def _one_rope(told: Told) -> Raw:
    raw: Raw = {"rope_parameters": _rope(told, "rope.freq_base")}
    if told.family.rotary_part != 1:
        head_dim = told.fields.integer("attention.key_length")
        raw["partial_rotary_factor"] = _rotated(told) / head_dim
    wrapper = told.family.wrapper
    if told.family.rope_sections:
        raw["rope_parameters"] |= {"mrope_section": _sections(told), "mrope_interleaved": True}
    if wrapper is not None and wrapper.alone_type is not None:
        raw |= {key: raw["rope_parameters"].pop(key) for key in wrapper.lifted}
    if wrapper is not None and wrapper.taken:
        raw["deepstack_visual_indexes"] = list(range(told.fields.integer("n_deepstack_layers", 0)))
    return raw


def _layer_ropes(told: Told) -> Raw:
    """Of layers that see everything, whose last pairs may stand still, and of those of a window."""
    full = {"rope_type": "default", "rope_theta": told.real("rope.freq_base", 10000.0)}
    turning = _turning_part(told)
    if turning is not None:
        full |= {"rope_type": "proportional", "partial_rotary_factor": turning}
    theta = told.real("rope.freq_base_swa", told.real("rope.freq_base", 10000.0))
    within = {"rope_type": "default", "rope_theta": theta}
    return {"rope_parameters": {FULL: full, SLIDING: within}}


def _turning_part(told: Told) -> float | None:
    """The share of a head's pairs that turn, as the divisors of its frequencies say it."""
    placed = told.parts.tensors.get(NAMES["rope_factors"])
    if placed is None:
        return None
    data = read_range(placed.file, placed.info.offset, placed.info.nbytes)
    factors = np.frombuffer(data, "<f4")
    return int((factors < _STANDING).sum()) / len(factors)


def _rope(told: Told, base: str) -> Raw:
    fields, kind = told.fields, told.fields.text("rope.scaling.type", "none")
    rope: Raw = {"rope_type": "default", "rope_theta": told.real(base, 10000.0)}
    if kind == "none":
        return rope
    if kind not in ("linear", "yarn"):
        raise fields.error(f"rope scaling '{kind}' is not known")
    rope |= {"rope_type": kind, "factor": told.real("rope.scaling.factor", 1.0)}
    if kind == "yarn":
        original = "rope.scaling.original_context_length"
        rope["original_max_position_embeddings"] = fields.integer(original)
        rope |= dict(_yarn(told, rope["factor"]))
    return rope


def _yarn(told: Told, factor: float) -> Iterator[tuple[str, Any]]:
    """How YaRN scales attention, and whether it rounds its range: llama.cpp has no key for that,
    so the file means what its family does."""
    yield from (("beta_fast", BETA_FAST), ("beta_slow", BETA_SLOW))  # llama.cpp's own
    usual = told.family.defaults.get("rope_parameters") or {}
    if "truncate" in usual or told.has(YARN_TRUNCATE):
        yield "truncate", told.fields.flag(YARN_TRUNCATE, bool(usual.get("truncate", True)))
    if told.family.attention == "mla":
        every = float(str(np.float32(told.real("rope.scaling.yarn_log_multiplier", 0.0) * 10)))
        yield from (("mscale", every), ("mscale_all_dim", every))
    elif told.has("rope.scaling.attn_factor"):
        default = 0.1 * float(np.log(factor)) + 1.0
        yield "attention_factor", told.real("rope.scaling.attn_factor", 1.0) * default


def _sections(told: Told) -> list[int]:
    """Sections that reach every frequency are cut to those of the model: see `metadata`."""
    sections, half = told.fields.integers("rope.dimension_sections")[:3], _rotated(told) // 2
    if len(sections) != 3 or not half <= sum(sections) <= half + 3 or min(sections) < 1:
        raise told.fields.error(f"rope.dimension_sections are {sections}, half a head is {half}")
    for kind in cycle((2, 1, 0)):
        if sum(sections) <= half:
            break
        if sections[kind] <= -(-(half - kind) // 3):
            sections[kind] -= 1
    return sections


def _rotated(told: Told) -> int:
    """Elements of a head that turn."""
    return told.fields.integer("rope.dimension_count", told.fields.integer("attention.key_length"))
