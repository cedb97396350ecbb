"""The metadata fields of a file: what llama.cpp needs, and the ``tenp.*`` fields beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.gguf.architectures import architecture, expert_groups
from tenp_edge.exporters.gguf.fields import Field, boolean, booleans, f32, text, u32, u32s, u64
from tenp_edge.models import (
    DeltaNet,
    LayerAttention,
    Mamba2,
    ModelConfig,
    ShortConvolution,
    VisionFacts,
)
from tenp_edge.runtime.gguf.file_origin import LAYOUT, OWN
from tenp_edge.runtime.gguf.rope_facts import YARN_TRUNCATE
from tenp_edge.runtime.memory.footprint import PlannedRun

TENP_VERSION = 1
EMPTY_VERSION = 2  # of a file with experts that have no neurons
NO_DIGEST = "0" * 32
_METHOD_CHARACTERS = 16
_KV_TYPE_BYTES, _DEVICE_BYTES = 4, 24
_SOFTMAX, _SIGMOID = 1, 2
_QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class Recipe:
    """How the model was pruned, in fields of fixed size: the manifest is made before a plan has
    chosen its neurons, and the file must not grow by knowing more."""

    digest: str = NO_DIGEST
    keep_ratio: float = 1.0
    method: str = "none"
    run: PlannedRun | None = None


def recipe_of(source: ModelSource) -> Recipe:
    """From the plan, or from the ``tenp`` section of a checkpoint that was pruned before."""
    plan, config = source.plan, source.config
    if plan is not None:
        digest = source.digest or NO_DIGEST
        method = plan.record.method or "none"
        return Recipe(digest, plan.keep_ratio, method, source.planned_run)
    pruned = config.raw.get("tenp") or {}
    experts = sum(len(row) for row in config.expert_widths.values())
    kept = config.expert_neurons / (experts * config.moe_intermediate_size)
    return Recipe(
        digest=source.digest or NO_DIGEST,
        keep_ratio=float(pruned.get("keep_ratio") or kept),
        method=str(pruned.get("method") or "none"),
        run=source.planned_run,
    )


def model_fields(
    config: ModelConfig, layout: str, file_type: int, recipe: Recipe, named: Sequence[Field] = ()
) -> list[Field]:
    """Every field but the tokenizer's, in file order. ``file_type``: general.file_type; ``named``:
    what names the model (`general`)."""
    arch = architecture_name(config, layout)
    groups = (
        _sizes(config),
        _attention(config),
        _experts(config, layout),
        _rope(config, layout),
        _output(config),
        _multipliers(config),
    )
    return [
        ("general.architecture", text(arch)),
        ("general.type", text("model")),
        *named,
        ("general.file_type", u32(file_type)),
        ("general.quantization_version", u32(_QUANTIZATION_VERSION)),
        *((f"{arch}.{key}", value) for key, value in chain(*(g.items() for g in groups))),
        *_tenp(config, layout, recipe),
    ]


def architecture_name(config: ModelConfig, layout: str) -> str:
    """llama.cpp's, or in the layout that llama.cpp does not read, our own."""
    name = architecture(config).name
    return OWN + name if layout == LAYOUT else name


def expert_width(config: ModelConfig, layout: str) -> int:
    """The one width that llama.cpp is told: the experts' own when merged, else the full one."""
    if layout == "merged":
        return next(iter(config.expert_widths.values()))[0]
    return config.moe_intermediate_size


def shared_count(config: ModelConfig, layout: str) -> int:
    """deepseek2 sizes the shared expert as a multiple of the routed width: how many, rounded up."""
    return math.ceil(config.shared_intermediate_size / expert_width(config, layout))


_Fields = Mapping[str, bytes]


def _sizes(config: ModelConfig) -> _Fields:
    return {
        "block_count": u32(config.num_hidden_layers),
        "context_length": u32(config.max_position_embeddings),
        "embedding_length": u32(config.hidden_size),
        "vocab_size": u32(config.vocab_size),
    }


def _attention(config: ModelConfig) -> _Fields:
    mla = config.mla
    fields = {
        "attention.head_count": u32(config.num_attention_heads),
        "attention.layer_norm_rms_epsilon": f32(config.rms_norm_eps),
    }
    if architecture(config).graph.by_layer:
        return {**fields, **_by_layer(config)}
    attention = _one_attention(config)
    if mla is None:
        fields |= {
            "attention.head_count_kv": _kv_heads(config),
            "attention.key_length": u32(attention.head_dim),
            "attention.value_length": u32(attention.head_dim),
            "rope.dimension_count": u32(config.rotary_size(next(iter(config.attention_by_layer)))),
        }
        if architecture(config).unrotated_key:
            fields["rope.scaling.finetuned"] = boolean(False)
        return {**fields, **_window(config), **_states(config)}
    # The absorbed form is multi-query attention: one KV head of lora + rope, V a view of K.
    return fields | {
        "attention.head_count_kv": u32(1),
        "attention.q_lora_rank": u32(mla.q_lora_rank or 0),
        "attention.kv_lora_rank": u32(mla.kv_lora_rank),
        "attention.key_length": u32(mla.kv_lora_rank + mla.qk_rope_head_dim),
        "attention.value_length": u32(mla.kv_lora_rank),
        "attention.key_length_mla": u32(mla.qk_nope_head_dim + mla.qk_rope_head_dim),
        "attention.value_length_mla": u32(mla.v_head_dim),
        "rope.dimension_count": u32(mla.qk_rope_head_dim),
    }


def _kv_heads(config: ModelConfig) -> bytes:
    """Of all layers at once, or of each where some do not attend: those have none."""
    own = config.attention_by_layer
    if len(own) == config.num_hidden_layers or architecture(config).graph.recurrent_layers:
        return u32(_one_attention(config).kv_heads)
    layers = range(config.num_hidden_layers)
    return u32s([own[layer].kv_heads if layer in own else 0 for layer in layers])


def _states(config: ModelConfig) -> _Fields:
    """Sizes of blocks that carry a state, each kind's own keys."""
    fields: dict[str, bytes] = {}
    for mixer in dict.fromkeys(config.mixers):
        if isinstance(mixer, ShortConvolution):
            fields["shortconv.l_cache"] = u32(mixer.taps)
        if isinstance(mixer, Mamba2):
            fields |= {
                "ssm.conv_kernel": u32(mixer.taps),
                "ssm.inner_size": u32(mixer.inner),
                "ssm.state_size": u32(mixer.state),
                "ssm.time_step_rank": u32(mixer.heads),
                "ssm.group_count": u32(mixer.groups),
            }
        if isinstance(mixer, DeltaNet):
            fields |= _delta_net(mixer)
    return {**fields, **_recurrent_layers(config)}


def _delta_net(net: DeltaNet) -> _Fields:
    """Sizes in the words of state space models."""
    return {
        "ssm.conv_kernel": u32(net.taps),
        "ssm.inner_size": u32(net.value_size),
        "ssm.state_size": u32(net.head_dim),
        "ssm.time_step_rank": u32(net.value_heads),
        "ssm.group_count": u32(net.key_heads),
    }


def _recurrent_layers(config: ModelConfig) -> _Fields:
    """Which layers carry a state, where heads do not say; as an interval too where they have one:
    readers that do not know the list assume that."""
    if not architecture(config).graph.recurrent_layers:
        return {}
    own, layers = config.attention_by_layer, range(config.num_hidden_layers)
    fields = {"attention.recurrent_layers": booleans([layer not in own for layer in layers])}
    first = next(iter(own)) + 1
    if all((layer in own) == ((layer + 1) % first == 0) for layer in layers):
        fields["full_attention_interval"] = u32(first)
    return fields


def _one_attention(config: ModelConfig) -> LayerAttention:
    """Heads and sizes, the same in every layer of the architectures that are known."""
    first = config.attention_layers[0]
    assert all(replace(other, window=first.window) == first for other in config.attention_layers)
    return first


def _by_layer(config: ModelConfig) -> _Fields:
    """Of an architecture that knows two kinds of layers: those that see everything, and (_swa)
    those of a window, which keys tell apart."""
    layers = config.attention_layers
    full = next(layer for layer in layers if layer.window is None)
    within = next((layer for layer in layers if layer.window is not None), full)
    return {
        "attention.head_count_kv": u32s([layer.kv_heads for layer in layers]),
        "attention.key_length": u32(full.head_dim),
        "attention.value_length": u32(full.head_dim),
        "attention.key_length_swa": u32(within.head_dim),
        "attention.value_length_swa": u32(within.head_dim),
        "attention.sliding_window": u32(within.window or config.max_position_embeddings),
        "attention.sliding_window_pattern": booleans(
            [layer.window is not None for layer in layers]
        ),
        "attention.shared_kv_layers": u32(0),
        "embedding_length_per_layer_input": u32(0),
        "rope.dimension_count": u32(full.head_dim),
        "rope.dimension_count_swa": u32(within.head_dim),
    }


def _window(config: ModelConfig) -> _Fields:
    """Which layers have one is llama.cpp's own knowledge (`check_architecture` compares)."""
    windows = [layer.window for layer in config.attention_layers if layer.window is not None]
    return {"attention.sliding_window": u32(max(windows))} if windows else {}


def _experts(config: ModelConfig, layout: str) -> _Fields:
    row, width = architecture(config), expert_width(config, layout)
    layers = config.num_hidden_layers
    routed = (width if layer in config.moe_layers else 0 for layer in range(layers))
    fields = {
        "expert_count": u32(config.num_experts),
        "expert_used_count": u32(config.num_experts_per_tok),
        "feed_forward_length": u32s([*routed])
        if row.width_by_layer
        else u32(config.intermediate_size if row.own_width else width),
    }
    if row.own_width:
        fields["expert_feed_forward_length"] = u32(width)
    if row.shared_width:
        fields["expert_shared_feed_forward_length"] = u32(config.shared_intermediate_size)
    if row.leading_dense:
        dense = config.num_hidden_layers - len(config.moe_layers)
        fields["leading_dense_block_count"] = u32(dense)
    if row.shared_count:
        fields["expert_shared_count"] = u32(shared_count(config, layout))
    if row.router_keys:
        fields |= _router(config)
    elif row.router_score:
        fields |= _router_score(config)
    for key, value in row.constants:
        fields[key] = u32(value)
    for key, number in row.real_constants:
        fields[key] = f32(number)
    return fields


def _router_score(config: ModelConfig) -> _Fields:
    sigmoid = config.family.router_score == "sigmoid"
    return {"expert_gating_func": u32(_SIGMOID if sigmoid else _SOFTMAX)}


def _router(config: ModelConfig) -> _Fields:
    fields = {
        "expert_weights_scale": f32(config.routed_scaling_factor),
        "expert_weights_norm": boolean(config.norm_topk_prob),
        **_router_score(config),
    }
    if expert_groups(config) > 1:
        fields["expert_group_count"] = u32(config.n_group)
        fields["expert_group_used_count"] = u32(config.topk_group)
    return fields


def _rope(config: ModelConfig, layout: str) -> _Fields:
    rope = config.rope
    fields = {"rope.freq_base": f32(rope.theta), **_vision(config)}
    if architecture(config).graph.by_layer:
        attention, ropes = config.attention_by_layer.items(), config.layer_ropes
        within = next((ropes[layer] for layer, own in attention if own.window is not None), rope)
        fields["rope.freq_base_swa"] = f32(within.theta)
    if rope.kind in ("default", "proportional"):  # the latter is a tensor (`computed`)
        return fields
    scaling = rope.scaling
    fields["rope.scaling.type"] = text(rope.kind)
    fields["rope.scaling.factor"] = f32(scaling["factor"])
    if rope.kind == "yarn":
        original = scaling.get("original_max_position_embeddings")
        fields["rope.scaling.original_context_length"] = u32(
            original or config.max_position_embeddings
        )
        fields |= _yarn_magnitude(scaling, latent=config.mla is not None)
        if layout == LAYOUT and scaling.get("truncate") is False:  # llama.cpp has no key for it
            fields[YARN_TRUNCATE] = boolean(False)
    return fields


def _vision(config: ModelConfig) -> _Fields:
    """What llama.cpp needs to look at pictures with a vision model's file beside this one."""
    if config.vision is None:
        return {}
    fields = {"rope.dimension_sections": u32s([*_sections(config, config.vision), 0])}
    if config.vision.deepstack_layers is not None:
        fields["n_deepstack_layers"] = u32(config.vision.deepstack_layers)
    return fields


def _sections(config: ModelConfig, vision: VisionFacts) -> list[int]:
    """Frequency i turns with time, height or width as i % 3 is 0, 1 or 2, up to three times the
    section; beyond it llama.cpp leaves it standing where transformers turns it with time. Sections
    that reach the last frequency make a text exact, and a picture closer: Qwen3-VL's 24, 20, 20
    would leave two of 64 standing."""
    half = config.rotary_size(next(iter(config.attention_by_layer))) // 2
    reaching = (-(-(half - kind) // 3) for kind in range(3))
    return [max(pair) for pair in zip(vision.rope_sections, reaching, strict=True)]


def _output(config: ModelConfig) -> _Fields:
    bound = config.logit_softcap
    return {} if bound is None else {"final_logit_softcapping": f32(bound)}


def _multipliers(config: ModelConfig) -> _Fields:
    own = config.multipliers
    if own.attention is None:
        return {}
    return {
        "attention.scale": f32(own.attention),
        "embedding_scale": f32(own.embedding),
        "residual_scale": f32(own.residual),
        "logit_scale": f32(1.0 / own.logits),
    }


def _yarn_magnitude(scaling: Mapping[str, Any], latent: bool) -> _Fields:
    """How YaRN scales attention: llama.cpp multiplies by 0.1 ln(factor) + 1 of its own accord.

    With latent attention it takes mscale_all_dim instead, as a logarithmic multiplier.
    """
    if latent:
        return {"rope.scaling.yarn_log_multiplier": f32(0.1 * scaling["mscale_all_dim"])}
    default = _mscale(scaling["factor"], 1.0)
    magnitude = scaling.get("attention_factor")
    if magnitude is None and scaling.get("mscale") and scaling.get("mscale_all_dim"):
        magnitude = _mscale(scaling["factor"], scaling["mscale"]) / _mscale(
            scaling["factor"], scaling["mscale_all_dim"]
        )
    return {} if magnitude is None else {"rope.scaling.attn_factor": f32(magnitude / default)}


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _tenp(config: ModelConfig, layout: str, recipe: Recipe) -> list[Field]:
    """What docs/formats/gguf-per-expert.md specifies."""
    widths = [width for layer in config.moe_layers for width in config.expert_widths[layer]]
    return [
        ("tenp.version", u32(TENP_VERSION if all(widths) else EMPTY_VERSION)),
        ("tenp.layout", text(layout)),
        ("tenp.full_width", u32(config.moe_intermediate_size)),
        ("tenp.moe_layers", u32s(config.moe_layers)),
        ("tenp.expert_widths", u32s(widths)),
        ("tenp.keep_ratio", f32(recipe.keep_ratio)),
        ("tenp.method", text(f"{recipe.method[:_METHOD_CHARACTERS]:{_METHOD_CHARACTERS}}")),
        ("tenp.plan_digest", text(f"{recipe.digest[:32]:032}")),
        *_planned(recipe.run or PlannedRun(0, 0, "")),
    ]


def _planned(run: PlannedRun) -> list[Field]:
    return [
        ("tenp.run.context", u32(run.context)),
        ("tenp.run.ubatch", u32(run.ubatch)),
        ("tenp.run.kv_type", text(f"{run.kv_type[:_KV_TYPE_BYTES]:{_KV_TYPE_BYTES}}")),
        ("tenp.run.ram_budget", u64(run.ram_budget)),
        ("tenp.run.device", text(_of_bytes(run.device, _DEVICE_BYTES))),
    ]


def _of_bytes(value: str, count: int) -> str:
    """``value`` in exactly ``count`` bytes: cut at a whole character, then spaces."""
    cut = value.encode()[:count].decode(errors="ignore")
    return cut + " " * (count - len(cut.encode()))
