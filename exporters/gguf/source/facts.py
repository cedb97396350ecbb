"""GGUF metadata -> what config.json would say: the way back from `exporters.gguf.metadata`.

A group of keys each, like there, chosen by facts of the architecture's row and of the family's
table. What the metadata does not say has llama.cpp's own default. `source.opening` then writes the
metadata of the config that was found and compares: what is not understood is refused.
"""

from __future__ import annotations

from typing import Any

from tenp_edge.errors import UserError, shown
from tenp_edge.exporters.gguf.architectures import ARCHITECTURES, NAMES
from tenp_edge.exporters.gguf.source.attention_facts import attention_facts
from tenp_edge.exporters.gguf.source.parts import GgufParts
from tenp_edge.exporters.gguf.source.told import Raw, SourceFields, Told
from tenp_edge.models import FAMILIES, Family
from tenp_edge.models.config.keys import TOP_K_KEYS
from tenp_edge.models.wrapper import WRAPPED_BY
from tenp_edge.runtime.gguf.file_origin import OWN

_SIGMOID = 2
_SHARED_KEYS = ("n_shared_experts", "moe_num_shared_experts")
_DENSE_KEYS = ("first_k_dense_replace", "moe_layer_start_index")
_MULTIPLIERS = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
_TIED = "tie_word_embeddings"
_TOKENS = ("bos", "eos", "padding")


def read_told(parts: GgufParts) -> Told:
    """The metadata of ``parts``. Raises UserError for an architecture that is not known."""
    fields = SourceFields(parts.header)
    fields.prefix = fields.text("general.architecture")
    name = fields.prefix.removeprefix(OWN)
    known = [model for model, row in ARCHITECTURES.items() if row.name == name]
    if not known or not fields.integer("expert_count", 0):
        supported = ", ".join(sorted({row.name for row in ARCHITECTURES.values()}))
        why = "is dense: it has no routed experts to prune" if known else "is not read as the model"
        raise UserError(
            f"{parts.path.name}: a model of the architecture '{shown(name)}' {why}",
            f"a Mixture-of-Experts model of one of: {supported}",
        )
    sigmoid = fields.integer("expert_gating_func", 1) == _SIGMOID
    scored = [m for m in known if (FAMILIES[m].router_score == "sigmoid") == sigmoid]
    model_type = (scored or known)[0]
    return Told(parts, fields, FAMILIES[model_type], ARCHITECTURES[model_type])


def config_json(told: Told) -> Raw:
    """What config.json of the model in the file would say."""
    groups = (_kind, _sizes, _tokens, _experts, _shared, attention_facts, _scales, _pruned)
    raw: Raw = {}
    for group in groups:
        raw |= group(told)
    for own, ours in told.family.renamed_keys.items():
        if ours in raw and ours != _TIED:  # which transformers knows by that name everywhere
            raw[own] = raw.pop(ours)
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
        _TIED: NAMES["output"] not in told.parts.tensors,
    }


def _feed_forward(told: Told) -> int:
    """Of the dense layers; where there are none it is a number that nothing is made of."""
    dense, key = told.rows("blk.0.ffn_gate.weight"), "feed_forward_length"
    if told.row.width_by_layer:
        return dense or max(told.fields.integers(key), default=0)
    return dense or told.fields.integer(key, 0)


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
    family = told.family
    if family.shared_block is None:
        return {}
    width = told.rows(NAMES["shared_up"].format(layer=told.first_routed))
    if family.shared_width_key is not None:
        return {family.shared_width_key: width}
    if family.shared_gated:
        return {"shared_expert_intermediate_size": width}
    return {_spelled(family, _SHARED_KEYS): width // told.width}


def _scales(told: Told) -> Raw:
    """A bound of the logits, and what the family multiplies by."""
    key, raw = told.family.softcap_key, dict[str, Any]()
    if key is not None:
        raw[key] = told.real("final_logit_softcapping", 0.0) or None
    if told.family.multipliers:
        raw |= {ours: told.real(theirs, 1.0) for ours, theirs in _MULTIPLIERS.items()}
    return raw


def _pruned(told: Told) -> Raw:
    widths, fields = told.pruned_widths, told.fields
    if widths is None:
        return {}
    if any(0 in row for row in widths.values()):
        raise UserError(
            f"{told.parts.path.name} has experts without neurons, and is not read as the model",
            "the checkpoint that the file was made from",
        )
    return {
        "tenp": {
            "expert_widths": widths,
            "keep_ratio": fields.real("tenp.keep_ratio", 1.0),
            "method": fields.text("tenp.method", "none").strip(),
            "digest": fields.text("tenp.plan_digest", ""),
        }
    }
