"""The keys of config.json: whose model they describe, and which are understood."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.models.config.reader import contradiction, refuse
from tenp_edge.models.family import Activation, Family
from tenp_edge.models.wrapper import WRAPPED_BY

EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
TOP_K_KEYS = ("num_experts_per_tok", "moe_k", "top_k_experts")
# What config.json calls the activation that a family's graph is built for.
_ACTIVATIONS: dict[Activation, tuple[str, ...]] = {
    "silu": ("silu", "swish"),
    "gelu_tanh": ("gelu_pytorch_tanh",),
    "swiglu_oai": ("silu", "swish"),
    "relu2": ("relu2",),
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


def family_of(raw: Mapping[str, Any], families: Mapping[str, Family]) -> Family:
    """The family of ``raw`` (config.json). Raises UserError for one that is not supported."""
    model_type = raw.get(WRAPPED_BY, raw.get("model_type"))
    if any(type(raw.get(key)) is int and raw[key] == 0 for key in EXPERT_KEYS):
        raise dense_model(model_type, families)
    if isinstance(model_type, str) and model_type in families:
        return families[model_type]
    for family in families.values():
        if isinstance(model_type, str) and model_type in _names(family):
            return family
    text = raw.get("text_config")
    if not any(key in raw or (isinstance(text, dict) and key in text) for key in EXPERT_KEYS):
        raise dense_model(model_type, families)
    supported = ", ".join(sorted(families))
    raise UserError(f"model family {model_type!r} is not supported", f"supported: {supported}")


def dense_model(model_type: object, families: Iterable[str]) -> UserError:
    """The error for a model that has no routed experts."""
    return UserError(
        f"{model_type!r} is a dense model: it has no routed experts to prune",
        f"a Mixture-of-Experts checkpoint of one of: {', '.join(sorted(families))}",
    )


def _names(family: Family) -> tuple[str, ...]:
    """What config.json calls a model of ``family``, or the language model in one."""
    wrapper = family.wrapper
    alone = wrapper is not None and wrapper.alone_type is None
    return (family.model_type, wrapper.text_type) if wrapper and alone else (family.model_type,)


def refuse_unknown(raw: Mapping[str, Any], family: Family, defaults: Mapping[str, Any]) -> None:
    """``defaults``: what a key that is not there means."""
    names, key = _ACTIVATIONS[family.activation], family.activation_key
    if raw.get(key, names[0]) not in names:
        raise refuse(f"{key} = {raw[key]!r}", names[0])
    for key, values in family.allowed.items():
        value = raw.get(key, defaults.get(key, values[0]))
        if value not in values:
            raise refuse(f"{key} = {value!r}", ", ".join(repr(v) for v in values))
    known = _READ_KEYS | _INERT_KEYS | set(family.allowed) | set(family.extra_keys)
    known |= set(family.renamed_keys)
    unknown = sorted(
        key for key in raw if key not in known and raw[key] not in (None, False, [], {})
    )
    if unknown:
        raise UserError(
            f"config.json has keys that {family.model_type} does not know: {', '.join(unknown)}",
            "remove them if they do not change the model's arithmetic",
        )


def refuse_contradictions(raw: Mapping[str, Any]) -> None:
    """Two spellings of one key must agree."""
    for keys in (EXPERT_KEYS, TOP_K_KEYS, ("dtype", "torch_dtype")):
        said = [(key, raw[key]) for key in keys if raw.get(key) is not None]
        values = {str(value).removeprefix("torch.") for _, value in said}
        if len(values) > 1:
            raise contradiction(", ".join(f"{key} is {value}" for key, value in said))
