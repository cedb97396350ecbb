"""GGUF metadata -> what config.json would say: the way back from `exporters.gguf.metadata`.

A group of keys each, like there, chosen by facts of the architecture's row and of the family's
table. What the metadata does not say has llama.cpp's own default. `source.opening` then writes the
metadata of the config that was found and compares: what is not understood is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from typing import Any

import numpy as np

from tenp_edge.disk import read_range
from tenp_edge.errors import UserError, shown
from tenp_edge.exporters.gguf.architectures import (
    ARCHITECTURES,
    NAMES,
    Architecture,
    merged_name,
)
from tenp_edge.exporters.gguf.source.parts import GgufParts
from tenp_edge.models import FAMILIES, Family
from tenp_edge.models.config.attention_config import FULL, SLIDING
from tenp_edge.models.config.keys import TOP_K_KEYS
from tenp_edge.models.wrapper import WRAPPED_BY
from tenp_edge.runtime.gguf.file_origin import OWN
from tenp_edge.runtime.gguf.metadata_reader import Fields
from tenp_edge.runtime.gguf.rope_facts import YARN_TRUNCATE
from tenp_edge.runtime.gguf.yarn import BETA_FAST, BETA_SLOW

_SIGMOID = 2
_SHARED_KEYS = ("n_shared_experts", "moe_num_shared_experts")
_DENSE_KEYS = ("first_k_dense_replace", "moe_layer_start_index")
_TOKENS = ("bos", "eos", "padding")
_SOUND = "a sound copy of it"
_STANDING = 1e29

Raw = dict[str, Any]


class _Fields(Fields):
    """Metadata, whose errors are those of a model to start from."""

    def error(self, why: str) -> UserError:
        return UserError(f"{self.header.file} is not a usable model: {shown(why, 240)}", _SOUND)


@dataclass(frozen=True, eq=False)
class Told:
    """A file's metadata and tensors, with the family and the row that they are of."""

    parts: GgufParts
    fields: Fields
    family: Family
    row: Architecture

    @property
    def prefix(self) -> str:
        """The architecture's name, before most keys."""
        return self.fields.prefix

    def has(self, key: str) -> bool:
        return f"{self.prefix}.{key}" in self.parts.header.fields

    def real(self, key: str, default: float) -> float:
        """The shortest decimal number that the stored float32 is: 1e-06, not 9.99999997e-07."""
        return float(str(np.float32(self.fields.real(key, default))))

    def rows(self, name: str) -> int:
        """Of the tensor ``name``: its row count, 0 where there is none."""
        placed = self.parts.tensors.get(name)
        return 0 if placed is None else placed.info.shape[1]

    def in_layers(self, name: str) -> bool:
        """Whether some layer has the tensor blk.N.``name``."""
        return any(f"blk.{layer}.{name}" in self.parts.tensors for layer in range(self.layers))

    @cached_property
    def layers(self) -> int:
        """Layers of the language model proper: those that predict further tokens are not."""
        return self.fields.integer("block_count") - self.fields.integer("nextn_predict_layers", 0)

    @cached_property
    def dense_layers(self) -> int:
        """How many layers in front have no experts."""
        if not self.row.leading_dense:
            return 0
        return self.fields.integer("leading_dense_block_count", 0)

    @cached_property
    def width(self) -> int:
        """Full width of a routed expert."""
        if "tenp.full_width" in self.parts.header.fields:
            return self.fields.integer("tenp.full_width")
        layer = self.dense_layers
        fused = self.rows(f"blk.{layer}.ffn_gate_up_exps.weight") // 2
        apart = self.rows(f"blk.{layer}.ffn_gate.0.weight")
        width = self.rows(merged_name(layer, "gate")) or fused or apart
        if not width:
            raise self.fields.error(f"layer {layer} has no routed experts")
        return width

    @cached_property
    def pruned_widths(self) -> dict[str, list[int]] | None:
        """Of every expert by layer, where tenp-edge pruned the file."""
        if "tenp.expert_widths" not in self.parts.header.fields:
            return None
        told, layers = (
            self.fields.integers("tenp.expert_widths"),
            self.fields.integers("tenp.moe_layers"),
        )
        count = len(told) // max(1, len(layers))
        if all(width == self.width for width in told):
            return None
        return {
            str(layer): told[place * count : (place + 1) * count]
            for place, layer in enumerate(layers)
        }


def read_told(parts: GgufParts) -> Told:
    """The metadata of ``parts``. Raises UserError for an architecture that is not known."""
    fields = _Fields(parts.header)
    fields.prefix = fields.text("general.architecture")
    name = fields.prefix.removeprefix(OWN)
    known = [model for model, row in ARCHITECTURES.items() if row.name == name]
    if not known or not fields.integer("expert_count", 0):
        supported = ", ".join(sorted({row.name for row in ARCHITECTURES.values()}))
        why = (
            "is dense: it has no routed experts to prune" if known else "is not one that is pruned"
        )
        raise UserError(
            f"{parts.path.name}: a model of the architecture '{shown(name)}' {why}",
            f"a Mixture-of-Experts model of one of: {supported}",
        )
    if ARCHITECTURES[known[0]].graph.state is not None:
        raise UserError(
            f"{parts.path.name}: some layers of '{shown(name)}' carry a state, which is not read "
            "back from a GGUF",
            "the checkpoint that the file was made from",
        )
    sigmoid = fields.integer("expert_gating_func", 1) == _SIGMOID
    scored = [m for m in known if (FAMILIES[m].router_score == "sigmoid") == sigmoid]
    model_type = (scored or known)[0]
    return Told(parts, fields, FAMILIES[model_type], ARCHITECTURES[model_type])


def config_json(told: Told) -> Raw:
    """What config.json of the model in the file would say."""
    groups: list[Callable[[Told], Raw]] = [_kind, _sizes, _tokens, _experts, _shared]
    groups.append(_latent if told.family.attention == "mla" else _grouped)
    groups.append(_layer_ropes if told.row.graph.by_layer else _one_rope)
    groups += [_windows, _output, _pruned]
    raw: Raw = {}
    for group in groups:
        raw |= group(told)
    fixed = {key: values[0] for key, values in told.family.allowed.items()}
    return {key: value for key, value in fixed.items() if value is not None} | raw


# -- groups of keys --------------------------------------------------------------------------------


def _kind(told: Told) -> Raw:
    family, wrapper = told.family, told.family.wrapper
    if wrapper is None:
        kind: Raw = {"model_type": family.model_type}
    elif wrapper.alone_type is None:
        kind = {"model_type": wrapper.text_type}
    else:
        alone = {"model_type": wrapper.alone_type, WRAPPED_BY: family.model_type}
        kind = {**alone, **wrapper.implied}
    return {"architectures": [family.architecture], **kind}


def _sizes(told: Told) -> Raw:
    fields = told.fields
    return {
        "hidden_size": fields.integer("embedding_length"),
        "num_hidden_layers": told.layers,
        "vocab_size": told.rows(NAMES["embed"]),
        "num_attention_heads": fields.integer("attention.head_count"),
        "max_position_embeddings": fields.integer("context_length"),
        "rms_norm_eps": told.real("attention.layer_norm_rms_epsilon", 1e-5),
        "intermediate_size": _feed_forward(told),
        "tie_word_embeddings": NAMES["output"] not in told.parts.tensors,
    }


def _feed_forward(told: Told) -> int:
    """Of the dense layers; where there are none it is a number that nothing is made of."""
    return told.rows("blk.0.ffn_gate.weight") or told.fields.integer("feed_forward_length", 0)


def _tokens(told: Told) -> Raw:
    """Ids of special tokens, for those who load a checkpoint of this model."""
    fields = told.parts.header.fields
    stated = {key: fields.get(f"tokenizer.ggml.{key}_token_id") for key in _TOKENS}
    return {
        f"{'pad' if key == 'padding' else key}_token_id": value
        for key, value in stated.items()
        if isinstance(value, int)
    }


def _experts(told: Told) -> Raw:
    fields, family, graph = told.fields, told.family, told.row.graph
    raw: Raw = {
        family.experts_key: fields.integer("expert_count"),
        _spelled(family, TOP_K_KEYS): fields.integer("expert_used_count"),
        family.width_key: told.width,
    }
    if told.row.leading_dense:
        raw[_spelled(family, _DENSE_KEYS)] = told.dense_layers
    if not family.always_norm_topk:
        stated = graph.norm_topk
        raw["norm_topk_prob"] = fields.flag("expert_weights_norm") if stated is None else stated
    if told.row.router_keys:
        raw["routed_scaling_factor"] = told.real("expert_weights_scale", 1.0) or 1.0
        groups = fields.integer("expert_group_count", 0) or 1
        raw["n_group"] = groups
        raw["topk_group"] = fields.integer("expert_group_used_count", 0) or groups
        if groups > 1 and family.router_score == "softmax":
            raw["topk_method"] = "group_limited_greedy"
    return raw


def _spelled(family: Family, keys: tuple[str, ...]) -> str:
    """The one of ``keys`` that the family's config.json uses."""
    known = [key for key in keys if key in family.defaults or key in family.extra_keys]
    return known[0] if known else keys[0]


def _shared(told: Told) -> Raw:
    if told.family.shared_block is None:
        return {}
    width = told.rows(f"blk.{told.dense_layers}.ffn_gate_shexp.weight")
    if told.family.shared_gated:
        return {"shared_expert_intermediate_size": width}
    return {_spelled(told.family, _SHARED_KEYS): width // told.width}


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
        kv_heads = fields.integer("attention.head_count_kv", heads)
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
        raw["partial_rotary_factor"] = told.fields.integer("rope.dimension_count") / head_dim
    if told.family.rope_sections:
        raw |= _vision(told)
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


def _vision(told: Told) -> Raw:
    """Sections that reach every frequency are cut to those of the model: see `metadata`."""
    deepstack = told.fields.integer("n_deepstack_layers", 0)
    sections, half = _sections(told), told.fields.integer("attention.key_length") // 2
    for kind in cycle((2, 1, 0)):
        if sum(sections) <= half:
            break
        if sections[kind] <= -(-(half - kind) // 3):
            sections[kind] -= 1
    return {"mrope_section": sections, "deepstack_visual_indexes": list(range(deepstack))}


def _sections(told: Told) -> list[int]:
    sections = told.fields.integers("rope.dimension_sections")[:3]
    half = told.fields.integer("attention.key_length") // 2
    if len(sections) != 3 or not half <= sum(sections) <= half + 3 or min(sections) < 1:
        raise told.fields.error(f"rope.dimension_sections are {sections}, half a head is {half}")
    return sections


def _output(told: Told) -> Raw:
    key = told.family.softcap_key
    if key is None:
        return {}
    return {key: told.real("final_logit_softcapping", 0.0) or None}


def _pruned(told: Told) -> Raw:
    widths, fields = told.pruned_widths, told.fields
    if widths is None:
        return {}
    return {
        "tenp": {
            "expert_widths": widths,
            "keep_ratio": fields.real("tenp.keep_ratio", 1.0),
            "method": fields.text("tenp.method", "none").strip(),
            "digest": fields.text("tenp.plan_digest", ""),
        }
    }
