"""config.json -> ModelConfig, in either spelling, with everything that is not understood refused.

Hugging Face has renamed keys over time (torch_dtype -> dtype, rope_theta + rope_scaling ->
rope_parameters, num_experts / num_local_experts / n_routed_experts); both spellings are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.models.family import (
    MLA,
    Activation,
    Family,
    LayerKeys,
    ModelConfig,
    QkNorm,
    Rope,
    VisionFacts,
    refuse,
)
from tenp_edge.models.layer_attention import LayerAttention
from tenp_edge.models.quantization import quantised_layouts
from tenp_edge.models.wrapper import WRAPPED_BY, own_keys, unwrap

_BELONGS = "the config.json that belongs to the checkpoint"
DTYPES = ("bfloat16", "float16", "float32")
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_TOP_K_KEYS = ("num_experts_per_tok", "moe_k", "top_k_experts")
# No model has more; what is built per layer and expert stays small whatever a file says.
_MOST = 2**31 - 1
_MOST_LAYERS, _MOST_EXPERTS = 10_000, 100_000
_MOST_REAL = 3e38  # What a float32 holds: files store these numbers as such.
_SHOWN = 60
_ROPE_KINDS = ("default", "linear", "yarn")
_PROPORTIONAL = "proportional"
_FULL, _SLIDING = "full_attention", "sliding_attention"
# What config.json calls the activation that a family's graph is built for.
_ACTIVATIONS: dict[Activation, tuple[str, ...]] = {
    "silu": ("silu", "swish"),
    "gelu_tanh": ("gelu_pytorch_tanh",),
    "swiglu_oai": ("silu", "swish"),
}
_ROPE_KEYS = frozenset(
    "type rope_type rope_theta factor original_max_position_embeddings attention_factor "
    "beta_fast beta_slow mscale mscale_all_dim truncate partial_rotary_factor".split()
)
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
    config = _Reader(raw, family)
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    layers = config.integer("num_hidden_layers", most=_MOST_LAYERS)
    experts = config.integer(*EXPERT_KEYS, most=_MOST_EXPERTS)
    width, top_k = config.integer(family.width_key), config.integer(*_TOP_K_KEYS)
    _refuse_contradictions(raw)
    if top_k > experts:
        raise contradiction(f"num_experts_per_tok is {top_k}, the model has {experts} experts")
    moe_layers = _moe_layers(config, family, layers)
    mla = _mla(config) if family.attention == "mla" else None
    groups, chosen = config.integer("n_group", default=1), config.integer("topk_group", default=1)
    _check_groups(experts, groups, chosen, top_k)
    kv_heads = config.integer("num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise contradiction(f"{heads} attention heads do not divide by {kv_heads} key/value heads")
    head_dim = _head_dim(config, mla, hidden, heads)
    latent = mla.kv_lora_rank + mla.qk_rope_head_dim if mla else 0
    windows = _windows(config, family, layers)
    attention = LayerAttention(heads, kv_heads, head_dim, latent=latent)
    ropes = _ropes(config, family)
    if mla is None and int(head_dim * ropes[_FULL].part) not in range(2, head_dim + 1, 2):
        part = ropes[_FULL].part
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
        rope=ropes[_FULL],
        mla=mla,
        dtype=_dtype(config),
        qk_norm=_qk_norm(config, family),
        vision=_vision(config, head_dim, layers) if family.rope_sections else None,
        expert_widths=_expert_widths(raw, moe_layers, experts, width),
        attention_layers=_attention_layers(config, family, attention, windows),
        layer_ropes=tuple(ropes[_SLIDING if window else _FULL] for window in windows),
        logit_softcap=_softcap(config, family),
    )


class _Reader:
    """Looks a key up in config.json, then in the family's defaults, then refuses."""

    def __init__(self, raw: Mapping[str, Any], family: Family) -> None:
        self.raw, self.family, self.defaults = raw, family, family.defaults

    def value(self, *keys: str, default: Any = None) -> Any:
        for source in (self.raw, self.defaults):
            for key in keys:
                if source.get(key) is not None:
                    return source[key]
        return default

    def integer(self, *keys: str, default: int | None = None, most: int = _MOST) -> int:
        """The first of ``keys`` that is there; 0 is legal only where it is the default."""
        value = self.value(*keys, default=default)
        least = 0 if default == 0 else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise malformed(keys[0], value, "a number above zero")
        if value > most:
            raise UserError(
                f"config.json: {keys[0]} is {value}; no model has more than {most}", _BELONGS
            )
        return value

    def number(self, key: str, default: float | None = None, *, zero: bool = False) -> float:
        """A finite number above zero; ``zero`` is legal where it is said."""
        return finite(key, self.value(key, default=default), zero=zero)

    def with_values(self, values: Mapping[str, Any]) -> _Reader:
        """The same with ``values`` in the place of what config.json says."""
        made = copy(self)
        made.raw = {**self.raw, **values}
        return made

    def flag(self, key: str | None) -> bool:
        """True or false; false where there is no such key."""
        value = self.value(key, default=False) if key else False
        if not isinstance(value, bool):
            raise malformed(str(key), value, "true or false")
        return value

    def layers(self, key: str) -> set[int]:
        """A list of layer numbers, empty where there is none."""
        value = self.value(key, default=[])
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise malformed(key, value, "a list of layers")
        return set(value)


def finite(key: str, value: Any, *, zero: bool = False) -> float:
    """``value`` as a finite number above zero (or zero); UserError in the name of ``key``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise malformed(key, value, "a number")
    if not (0.0 if zero else math.ulp(0.0)) <= value < math.inf or value > _MOST_REAL:
        raise malformed(key, value, f"a number {'of zero or more' if zero else 'above zero'}")
    return float(value)


def malformed(key: str, value: Any, wanted: str) -> UserError:
    """The error for a value of another kind than ``wanted``."""
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return UserError(f"config.json: {key} is {shown}, not {wanted}", _BELONGS)


def contradiction(what: str) -> UserError:
    """The error for a config.json whose values exclude one another."""
    return UserError(f"config.json contradicts itself: {what}", _BELONGS)


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


def _moe_layers(config: _Reader, family: Family, layers: int) -> tuple[int, ...]:
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


def _end_of_routed(config: _Reader, layers: int) -> int:
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
    return UserError("config.json leaves no layer with routed experts", _BELONGS)


def _shared_width(config: _Reader, family: Family, width: int) -> int:
    if family.shared_block is None:
        return 0
    if family.shared_gated:
        return config.integer("shared_expert_intermediate_size", default=0)
    return width * config.integer("n_shared_experts", "moe_num_shared_experts", default=0)


def _mla(config: _Reader) -> MLA:
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


def _head_dim(config: _Reader, mla: MLA | None, hidden: int, heads: int) -> int:
    if mla is not None:
        return mla.qk_nope_head_dim + mla.qk_rope_head_dim
    explicit = config.value("head_dim")
    if explicit is None and hidden % heads:
        raise contradiction(f"hidden_size {hidden} does not divide by {heads} heads")
    return hidden // heads if explicit is None else config.integer("head_dim")


def _windows(config: _Reader, family: Family, layers: int) -> list[int | None]:
    """The window of each layer, None where it looks at everything."""
    every, types = family.full_attention_every, config.value("layer_types")
    if not every or config.value("sliding_window") is None:
        return [None] * layers
    if types is None:
        types = [_SLIDING if (layer + 1) % every else _FULL for layer in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise malformed("layer_types", types, f"a list of {layers} layers")
    for kind in types:
        if kind not in (_FULL, _SLIDING):
            raise refuse(f"layer_types with {kind!r}", f"{_FULL}, {_SLIDING}")
    window = config.integer("sliding_window")
    windows = [window if kind == _SLIDING else None for kind in types]
    # transformers lets the last layer of such a family see everything, whatever is said.
    return windows if family.layer_keys is None else [*windows[:-1], None]


def _attention_layers(
    config: _Reader, family: Family, plain: LayerAttention, windows: Sequence[int | None]
) -> tuple[LayerAttention, ...]:
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
    config: _Reader, keys: LayerKeys, plain: LayerAttention, layer: int, *, shared: bool
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


def _ropes(config: _Reader, family: Family) -> dict[str, Rope]:
    """The rotary embedding by type of layer; one for all but where the family has two."""
    raw = config.raw
    key = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    stated = config.value("rope_parameters", "rope_scaling", default={})
    if not isinstance(stated, dict):
        raise UserError(f"config.json: {key} is {stated!r}, not an object", _BELONGS)
    if family.layer_keys is None:
        return dict.fromkeys((_FULL, _SLIDING), _rope(config, key, stated, _ROPE_KINDS))
    if set(stated) != {_FULL, _SLIDING} or not all(isinstance(v, dict) for v in stated.values()):
        raise malformed(key, stated, f"an object of {_FULL} and {_SLIDING}")
    kinds = {_FULL: (*_ROPE_KINDS, _PROPORTIONAL), _SLIDING: _ROPE_KINDS}
    return {kind: _rope(config, f"{key}.{kind}", stated[kind], kinds[kind]) for kind in kinds}


def _softcap(config: _Reader, family: Family) -> float | None:
    key = family.softcap_key
    return None if key is None or config.value(key) is None else config.number(key)


def _rope(config: _Reader, key: str, stated: Mapping[str, Any], kinds: Sequence[str]) -> Rope:
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


def _rotary_part(config: _Reader, stated: object) -> float:
    """The share of a head that is rotated, as ``stated`` among the rope's keys or beside them."""
    usual, beside = config.family.rotary_part, config.value("partial_rotary_factor")
    if stated is not None and beside is not None and stated != beside:
        raise contradiction(f"partial_rotary_factor is {beside} and {stated}")
    said = stated if stated is not None else beside
    part = finite("partial_rotary_factor", usual if said is None else said)
    if part > 1 or (part != 1 and usual == 1):
        raise refuse(f"partial_rotary_factor = {part}", "1.0")
    return part


def _vision(config: _Reader, head_dim: int, layers: int) -> VisionFacts:
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


def _qk_norm(config: _Reader, family: Family) -> QkNorm:
    key = family.qk_norm_key
    return family.qk_norm if key is None or config.flag(key) else "none"


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
    if original is not None and (not isinstance(original, int) or not 0 < original <= _MOST):
        raise malformed(f"{section}.original_max_position_embeddings", original, "a length")
    factor = scaling.get("factor")
    if kind in ("default", _PROPORTIONAL):
        return
    if factor is None:
        raise contradiction(f"{section} of the type {kind} has no factor")
    if factor < 1:
        raise malformed(f"{section}.factor", factor, "1 or more")


def _dtype(config: _Reader) -> str:
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
        raise UserError("config.json: the tenp section is malformed", _BELONGS) from None
    legal = all(0 < w <= width for row in widths.values() for w in row)
    same = tuple(sorted(widths)) == moe_layers and {len(r) for r in widths.values()} == {experts}
    if not (legal and same):
        raise UserError(
            "config.json: the tenp section does not match the model's MoE layers", _BELONGS
        )
    return widths
