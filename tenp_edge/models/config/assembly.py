"""config.json -> ModelConfig, in either spelling, with everything that is not understood refused.

Hugging Face has renamed keys over time (torch_dtype -> dtype, rope_theta + rope_scaling ->
rope_parameters, num_experts / num_local_experts / n_routed_experts); both spellings are read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tenp_edge.models.config.attention_config import (
    FULL,
    SLIDING,
    attention_layers,
    head_dim_of,
    latent_attention,
    windows_of,
)
from tenp_edge.models.config.expert_config import (
    check_groups,
    constants,
    expert_widths,
    moe_layers_of,
    shared_width,
)
from tenp_edge.models.config.keys import (
    EXPERT_KEYS,
    TOP_K_KEYS,
    family_of,
    refuse_contradictions,
    refuse_unknown,
)
from tenp_edge.models.config.mixer_config import EXPERTS, listed_layers, mixers_of
from tenp_edge.models.config.reader import ConfigReader, contradiction, malformed, refuse
from tenp_edge.models.config.rope_config import rope_by_layer_type, rope_sections
from tenp_edge.models.family import Family, QkNorm
from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.models.model_config import ModelConfig, VisionFacts
from tenp_edge.models.multipliers import UNSCALED, Multipliers
from tenp_edge.models.quantization import quantised_layouts
from tenp_edge.models.wrapper import own_keys, unwrap

DTYPES = ("bfloat16", "float16", "float32")
# No model has more: what is built per layer and expert stays small whatever a file says.
_MOST_LAYERS, _MOST_EXPERTS = 10_000, 100_000


def read_config(raw: Mapping[str, Any], families: Mapping[str, Family]) -> ModelConfig:
    """Check ``raw`` (config.json) against its family's table and normalise it."""
    family = family_of(raw, families)
    wrapper = family.wrapper
    if wrapper is None or raw["model_type"] != family.model_type:
        return _read_text_config(raw, family)
    refuse_unknown(own_keys(raw, wrapper), family, {})
    text = unwrap(raw, wrapper) | {"architectures": [family.architecture]}
    config = _read_text_config(text, family)
    return replace(config, stored_prefix=wrapper.prefix)


def _read_text_config(raw: Mapping[str, Any], family: Family) -> ModelConfig:
    """`read_config` of a language model's own config."""
    quantised_layouts(raw)  # refuses what is not known
    refuse_unknown(raw, family, family.defaults)
    config = ConfigReader(raw, family)
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    listed = listed_layers(config, family)
    layers = config.integer("num_hidden_layers", default=listed, most=_MOST_LAYERS)
    experts = config.integer(*EXPERT_KEYS, most=_MOST_EXPERTS)
    width, top_k = config.integer(family.width_key), config.integer(*TOP_K_KEYS)
    refuse_contradictions(config.raw)
    if top_k > experts:
        raise contradiction(f"num_experts_per_tok is {top_k}, the model has {experts} experts")
    moe_layers = moe_layers_of(config, family, layers)
    mla = latent_attention(config) if family.attention == "mla" else None
    groups, chosen = config.integer("n_group", default=1), config.integer("topk_group", default=1)
    check_groups(experts, groups, chosen, top_k)
    kv_heads = config.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise contradiction(f"{heads} attention heads do not divide by {kv_heads} key/value heads")
    head_dim = head_dim_of(config, mla, hidden, heads)
    latent = mla.kv_lora_rank + mla.qk_rope_head_dim if mla else 0
    windows = windows_of(config, family, layers)
    attention = LayerAttention(heads, kv_heads, head_dim, latent=latent)
    ropes = rope_by_layer_type(config, family)
    rotated = family.rotary_module is not None and mla is None
    if rotated and int(head_dim * ropes[FULL].part) not in range(2, head_dim + 1, 2):
        part = ropes[FULL].part
        raise contradiction(f"{part:g} of a head of {head_dim} is no even number to rotate")
    widths = expert_widths(raw, moe_layers, experts, width)
    return ModelConfig(
        family=family,
        raw=dict(raw),
        hidden_size=hidden,
        num_hidden_layers=layers,
        vocab_size=config.integer("vocab_size"),
        num_experts=experts,
        num_experts_per_tok=top_k,
        moe_intermediate_size=width,
        intermediate_size=config.integer("intermediate_size", default=0),
        shared_intermediate_size=shared_width(config, family, width),
        moe_layers=moe_layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        max_position_embeddings=config.integer("max_position_embeddings"),
        rms_norm_eps=config.number("rms_norm_eps", default=1e-6, zero=True),
        tie_word_embeddings=config.flag("tie_word_embeddings"),
        qkv_bias=config.flag(family.qkv_bias_key),
        o_bias=config.flag(family.o_bias_key),
        norm_topk_prob=family.always_norm_topk or config.flag("norm_topk_prob"),
        routed_scaling_factor=config.number("routed_scaling_factor", default=1.0),
        n_group=groups,
        topk_group=chosen,
        rope=ropes[FULL],
        mla=mla,
        dtype=_dtype(config),
        qk_norm=_qk_norm(config, family),
        vision=_vision(config, int(head_dim * ropes[FULL].part), layers),
        expert_widths=widths,
        constants=constants(raw, widths),
        mixers=mixers_of(config, family, attention_layers(config, family, attention, windows)),
        mlp_layers=_mlp_layers(family, moe_layers, layers),
        layer_ropes=tuple(ropes[SLIDING if window else FULL] for window in windows),
        logit_softcap=_softcap(config, family),
        multipliers=_multipliers(config) if family.multipliers else UNSCALED,
        stored_prefix=family.stored_prefixes[0],
    )


def _vision(config: ConfigReader, rotated: int, layers: int) -> VisionFacts | None:
    """None of a family that divides no frequencies; ``rotated`` elements of a head turn."""
    if not config.family.rope_sections:
        return None
    sections = rope_sections(config)
    legal = isinstance(sections, list) and len(sections) == 3
    if not legal or not all(type(size) is int and size > 0 for size in sections):
        raise malformed("mrope_section", sections, "three numbers above zero")
    if sum(sections) != rotated // 2:
        raise contradiction(f"mrope_section sums to {sum(sections)}, half a head is {rotated // 2}")
    wrapper = config.family.wrapper
    if wrapper is None or not wrapper.taken:
        return VisionFacts(tuple(sections), None)
    deepstack = config.layers("deepstack_visual_indexes")
    if len(deepstack) > layers:
        raise contradiction(f"deepstack_visual_indexes has {len(deepstack)} of {layers} layers")
    return VisionFacts(tuple(sections), len(deepstack))


def _mlp_layers(family: Family, moe_layers: Sequence[int], layers: int) -> frozenset[int]:
    """Those that do not route, or all where an MLP runs beside the experts; none where layers of
    experts alone stand among others."""
    own = () if EXPERTS in family.layer_kinds.values() else range(layers)
    return frozenset(own).difference(() if family.dense_beside else moe_layers)


def _qk_norm(config: ConfigReader, family: Family) -> QkNorm:
    key = family.qk_norm_key
    return family.qk_norm if key is None or config.flag(key) else "none"


def _softcap(config: ConfigReader, family: Family) -> float | None:
    key = family.softcap_key
    return None if key is None or config.value(key) is None else config.number(key)


def _multipliers(config: ConfigReader) -> Multipliers:
    return Multipliers(
        embedding=config.number("embedding_multiplier", default=1.0),
        attention=config.number("attention_multiplier", default=1.0),
        residual=config.number("residual_multiplier", default=1.0),
        logits=1.0 / config.number("logits_scaling", default=1.0),
    )


def _dtype(config: ConfigReader) -> str:
    dtype = str(config.value("dtype", "torch_dtype", default="float32")).removeprefix("torch.")
    if dtype not in DTYPES:
        raise refuse(f"dtype = {dtype!r}", ", ".join(DTYPES))
    return dtype
