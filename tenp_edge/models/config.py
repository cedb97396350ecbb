"""config.json -> ModelConfig, in either spelling, with everything that is not understood refused.

Hugging Face has renamed keys over time (torch_dtype -> dtype, rope_theta + rope_scaling ->
rope_parameters, num_experts / num_local_experts / n_routed_experts); both spellings are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.models.attention_config import (
    FULL,
    SLIDING,
    read_attention_layers,
    read_head_dim,
    read_mla,
    read_ropes,
    read_windows,
)
from tenp_edge.models.config_reader import BELONGS, Reader, contradiction, finite, malformed
from tenp_edge.models.family import Activation, Family, ModelConfig, QkNorm, VisionFacts, refuse
from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.models.quantization import quantised_layouts
from tenp_edge.models.wrapper import WRAPPED_BY, own_keys, unwrap

DTYPES = ("bfloat16", "float16", "float32")
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOP_K_KEYS = ("num_experts_per_tok", "moe_k", "top_k_experts")
# What is built per layer and expert stays small whatever a file says.
_MOST_LAYERS, _MOST_EXPERTS = 10_000, 100_000
# What config.json calls the activation that a family's graph is built for.
_ACTIVATIONS: dict[Activation, tuple[str, ...]] = {
    "silu": ("silu", "swish"),
    "gelu_tanh": ("gelu_pytorch_tanh",),
    "swiglu_oai": ("silu", "swish"),
}
# Keys that any of the families may carry, and keys that change nothing at inference.
_READ_KEYS = frozenset(
    "architectures model_type hidden_size intermediate_size num_hidden_layers vocab_size "
    "num_attention_heads num_key_value_heads head_dim max_position_embeddings rms_norm_eps "
    "tie_word_embeddings rope_theta rope_scaling rope_parameters torch_dtype dtype hidden_act "
    "num_experts num_local_experts n_routed_experts num_experts_per_tok moe_intermediate_size "
    "norm_topk_prob routed_scaling_factor n_group topk_group attention_bias mlp_only_layers "
    "decoder_sparse_step first_k_dense_replace n_shared_experts q_lora_rank kv_lora_rank "
    "qk_nope_head_dim qk_rope_head_dim qk_head_dim v_head_dim quantization_config tenp".split()
)
_INERT_KEYS = frozenset(
    "_name_or_path _attn_implementation _commit_hash add_cross_attention attention_dropout "
    "auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward "
    "cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample "
    "early_stopping encoder_no_repeat_ngram_size eos_token_id experts_implementation "
    "exponential_decay_length_penalty "
    "finetuning_task forced_bos_token_id forced_eos_token_id id2label initializer_range "
    "is_decoder is_encoder_decoder label2id layer_types length_penalty max_length "
    "max_window_layers min_length moe_layer_freq no_repeat_ngram_size num_beam_groups num_beams "
    "num_return_sequences output_attentions output_hidden_states output_router_logits "
    "output_scores pad_token_id prefix pretraining_tp problem_type pruned_heads "
    "remove_invalid_values repetition_penalty return_dict return_dict_in_generate "
    "router_aux_loss_coef sep_token_id sliding_window suppress_tokens task_specific_params "
    "temperature tf_legacy_loss tokenizer_class top_k top_p torchscript transformers_version "
    "typical_p use_bfloat16 use_cache".split()
)


def read_config(raw: Mapping[str, Any], families: Mapping[str, Family]) -> ModelConfig:
    """Check ``raw`` (config.json) against its family's table and normalise it."""
    family = _family(raw, families)
    wrapper = family.wrapper
    if wrapper is None or raw["model_type"] != family.model_type:
        return _read_text_config(raw, family)
    _refuse_unknown(own_keys(raw, wrapper), family, {})
    text = unwrap(raw, wrapper) | {"architectures": [family.architecture]}
    found = _read_text_config(text, family)
    return replace(found, stored_prefix=wrapper.prefix)


def _read_text_config(raw: Mapping[str, Any], family: Family) -> ModelConfig:
    """`read_config` of a language model's own config."""
    quantised_layouts(raw)  # refuses what is not known
    _refuse_unknown(raw, family, family.defaults)
    config = Reader(raw, family)
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    layers = config.integer("num_hidden_layers", most=_MOST_LAYERS)
    experts = config.integer(*EXPERT_KEYS, most=_MOST_EXPERTS)
    width, top_k = config.integer(family.width_key), config.integer(*_TOP_K_KEYS)
    _refuse_contradictions(raw)
    if top_k > experts:
        raise contradiction(f"num_experts_per_tok is {top_k}, the model has {experts} experts")
    moe_layers = _moe_layers(config, family, layers)
    mla = read_mla(config) if family.attention == "mla" else None
    groups, chosen = config.integer("n_group", default=1), config.integer("topk_group", default=1)
    _check_groups(experts, groups, chosen, top_k)
    kv_heads = config.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise contradiction(f"{heads} attention heads do not divide by {kv_heads} key/value heads")
    head_dim = read_head_dim(config, mla, hidden, heads)
    latent = mla.kv_lora_rank + mla.qk_rope_head_dim if mla else 0
    windows = read_windows(config, family, layers)
    attention = LayerAttention(heads, kv_heads, head_dim, latent=latent)
    ropes = read_ropes(config, family)
    if mla is None and int(head_dim * ropes[FULL].part) not in range(2, head_dim + 1, 2):
        part = ropes[FULL].part
        raise contradiction(f"{part:g} of a head of {head_dim} is no even number to rotate")
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
        shared_intermediate_size=_shared_width(config, family, width),
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
        vision=_vision(config, head_dim, layers) if family.rope_sections else None,
        expert_widths=_expert_widths(raw, moe_layers, experts, width),
        attention_layers=read_attention_layers(config, family, attention, windows),
        layer_ropes=tuple(ropes[SLIDING if window else FULL] for window in windows),
        logit_softcap=_softcap(config, family),
    )


def _refuse_contradictions(raw: Mapping[str, Any]) -> None:
    """Two spellings of one key must agree."""
    for keys in (EXPERT_KEYS, _TOP_K_KEYS, ("dtype", "torch_dtype")):
        said = [(key, raw[key]) for key in keys if raw.get(key) is not None]
        values = {str(value).removeprefix("torch.") for _, value in said}
        if len(values) > 1:
            raise contradiction(", ".join(f"{key} is {value}" for key, value in said))


def _check_groups(experts: int, groups: int, chosen: int, top_k: int) -> None:
    if experts % groups:
        raise contradiction(f"{experts} experts do not divide into {groups} groups")
    if chosen > groups:
        raise contradiction(f"topk_group is {chosen}, there are {groups} groups")
    within = experts // groups * chosen
    if top_k > within:
        raise contradiction(
            f"{chosen} of {groups} groups hold {within} experts, num_experts_per_tok is {top_k}"
        )


def _family(raw: Mapping[str, Any], families: Mapping[str, Family]) -> Family:
    model_type = raw.get(WRAPPED_BY, raw.get("model_type"))
    supported = ", ".join(sorted(families))
    for family in families.values():
        if isinstance(model_type, str) and model_type in _names(family):
            return family
    text = raw.get("text_config")
    if not any(key in raw or (isinstance(text, dict) and key in text) for key in EXPERT_KEYS):
        raise UserError(
            f"{model_type!r} is a dense model: it has no routed experts to prune",
            f"a Mixture-of-Experts checkpoint of one of: {supported}",
        )
    raise UserError(f"model family {model_type!r} is not supported", f"supported: {supported}")


def _names(family: Family) -> tuple[str, ...]:
    """What config.json calls a model of ``family``, or the language model in one."""
    wrapper = family.wrapper
    alone = wrapper is not None and wrapper.alone_type is None
    return (family.model_type, wrapper.text_type) if wrapper and alone else (family.model_type,)


def _refuse_unknown(raw: Mapping[str, Any], family: Family, defaults: Mapping[str, Any]) -> None:
    """``defaults``: what a key that is not there means."""
    names, key = _ACTIVATIONS[family.activation], family.activation_key
    if raw.get(key, names[0]) not in names:
        raise refuse(f"{key} = {raw[key]!r}", names[0])
    for key, values in family.allowed.items():
        value = raw.get(key, defaults.get(key, values[0]))
        if value not in values:
            raise refuse(f"{key} = {value!r}", ", ".join(repr(v) for v in values))
    known = _READ_KEYS | _INERT_KEYS | set(family.allowed) | set(family.extra_keys)
    unknown = sorted(
        key for key in raw if key not in known and raw[key] not in (None, False, [], {})
    )
    if unknown:
        raise UserError(
            f"config.json has keys that {family.model_type} does not know: {', '.join(unknown)}",
            "remove them if they do not change the model's arithmetic",
        )


def _moe_layers(config: Reader, family: Family, layers: int) -> tuple[int, ...]:
    """Which decoder layers route: transformers' rules for dense-first and sparse-step models."""
    types = config.value("mlp_layer_types")
    if types is not None:
        return _sparse_layers(types, layers)
    dense_first = config.integer("first_k_dense_replace", "moe_layer_start_index", default=0)
    step = config.integer("decoder_sparse_step", "moe_layer_interval", default=1)
    dense = config.layers("mlp_only_layers")
    chosen = tuple(
        layer
        for layer in range(_end_of_routed(config, layers))
        if layer >= dense_first and layer not in dense and (layer + 1) % step == 0
    )
    if not chosen:
        raise _no_routed_layer()
    return chosen


def _end_of_routed(config: Reader, layers: int) -> int:
    """The layer from which on none routes; -1 as the last that does is the model's last."""
    last = config.value("moe_layer_end_index", default=-1)
    if type(last) is not int or not -1 <= last < layers:
        raise malformed("moe_layer_end_index", last, f"-1 or a layer of {layers}")
    return layers if last == -1 else last + 1


def _sparse_layers(types: object, layers: int) -> tuple[int, ...]:
    """The layers that a list of "dense" and "sparse" calls sparse."""
    kinds = ("dense", "sparse")
    if not isinstance(types, list) or not all(kind in kinds for kind in types):
        raise malformed("mlp_layer_types", types, "a list of dense and sparse")
    if len(types) != layers:
        raise contradiction(f"mlp_layer_types has {len(types)} layers, the model has {layers}")
    chosen = tuple(layer for layer, kind in enumerate(types) if kind == "sparse")
    if not chosen:
        raise _no_routed_layer()
    return chosen


def _no_routed_layer() -> UserError:
    return UserError("config.json leaves no layer with routed experts", BELONGS)


def _shared_width(config: Reader, family: Family, width: int) -> int:
    if family.shared_block is None:
        return 0
    if family.shared_gated:
        return config.integer("shared_expert_intermediate_size", default=0)
    return width * config.integer("n_shared_experts", "moe_num_shared_experts", default=0)


def _softcap(config: Reader, family: Family) -> float | None:
    key = family.softcap_key
    return None if key is None or config.value(key) is None else config.number(key)


def _vision(config: Reader, head_dim: int, layers: int) -> VisionFacts:
    sections = config.value("mrope_section")
    legal = isinstance(sections, list) and len(sections) == 3
    if not legal or not all(type(size) is int and size > 0 for size in sections):
        raise malformed("mrope_section", sections, "three numbers above zero")
    if sum(sections) != head_dim // 2:
        raise contradiction(
            f"mrope_section sums to {sum(sections)}, half a head is {head_dim // 2}"
        )
    deepstack = config.layers("deepstack_visual_indexes")
    if len(deepstack) > layers:
        raise contradiction(f"deepstack_visual_indexes has {len(deepstack)} of {layers} layers")
    return VisionFacts(tuple(sections), len(deepstack))


def _qk_norm(config: Reader, family: Family) -> QkNorm:
    key = family.qk_norm_key
    return family.qk_norm if key is None or config.flag(key) else "none"


def _dtype(config: Reader) -> str:
    dtype = str(config.value("dtype", "torch_dtype", default="float32")).removeprefix("torch.")
    if dtype not in DTYPES:
        raise refuse(f"dtype = {dtype!r}", ", ".join(DTYPES))
    return dtype


def _expert_widths(
    raw: Mapping[str, Any], moe_layers: tuple[int, ...], experts: int, width: int
) -> dict[int, tuple[int, ...]]:
    """Uniform, unless a ``tenp`` section (a checkpoint pruned by this tool) lists the widths."""
    section = raw.get("tenp")
    if section is None:
        return dict.fromkeys(moe_layers, (width,) * experts)
    try:
        pruned = section["expert_widths"].items()
        widths = {int(layer): tuple(int(w) for w in row) for layer, row in pruned}
        finite("tenp.keep_ratio", section.get("keep_ratio", 1.0))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        raise UserError("config.json: the tenp section is malformed", BELONGS) from None
    legal = all(0 < w <= width for row in widths.values() for w in row)
    same = tuple(sorted(widths)) == moe_layers and {len(r) for r in widths.values()} == {experts}
    if not (legal and same):
        raise UserError(
            "config.json: the tenp section does not match the model's MoE layers", BELONGS
        )
    return widths
