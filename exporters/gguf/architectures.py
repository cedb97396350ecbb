"""How each family looks in GGUF: names and facts as tables, checked against llama.cpp itself.

Roles are those of `TensorSpec.role`; one table of names serves every architecture. What llama.cpp's
loader or graph fixes for an architecture (renormalised top-k, no biases, ...) is a fact of its row
here or in the runtime, so that `check_architecture` can refuse a model that the file would describe
wrongly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tenp_edge.errors import UserError
from tenp_edge.models import ModelConfig
from tenp_edge.runtime.gguf import runnable_architectures
from tenp_edge.runtime.gguf.yarn import BETA_FAST, BETA_SLOW, frequency_divisors

NAMES = {
    "embed": "token_embd.weight",
    "norm": "output_norm.weight",
    "output": "output.weight",
    "input_norm": "blk.{layer}.attn_norm.weight",
    "q": "blk.{layer}.attn_q.weight",
    "k": "blk.{layer}.attn_k.weight",
    "v": "blk.{layer}.attn_v.weight",
    "o": "blk.{layer}.attn_output.weight",
    "o_bias": "blk.{layer}.attn_output.bias",
    "sinks": "blk.{layer}.attn_sinks.weight",
    "q_bias": "blk.{layer}.attn_q.bias",
    "k_bias": "blk.{layer}.attn_k.bias",
    "v_bias": "blk.{layer}.attn_v.bias",
    "q_norm": "blk.{layer}.attn_q_norm.weight",
    "k_norm": "blk.{layer}.attn_k_norm.weight",
    "q_a": "blk.{layer}.attn_q_a.weight",
    "q_a_norm": "blk.{layer}.attn_q_a_norm.weight",
    "q_b": "blk.{layer}.attn_q_b.weight",
    "kv_a": "blk.{layer}.attn_kv_a_mqa.weight",
    "kv_a_norm": "blk.{layer}.attn_kv_a_norm.weight",
    "k_b": "blk.{layer}.attn_k_b.weight",
    "v_b": "blk.{layer}.attn_v_b.weight",
    "delta_qkv": "blk.{layer}.attn_qkv.weight",
    "delta_z": "blk.{layer}.attn_gate.weight",
    "delta_ba": "blk.{layer}.ssm_ba.weight",
    "delta_a": "blk.{layer}.ssm_alpha.weight",
    "delta_b": "blk.{layer}.ssm_beta.weight",
    "delta_conv": "blk.{layer}.ssm_conv1d.weight",
    "delta_dt_bias": "blk.{layer}.ssm_dt.bias",
    "delta_decay": "blk.{layer}.ssm_a",
    "delta_norm": "blk.{layer}.ssm_norm.weight",
    "delta_out": "blk.{layer}.ssm_out.weight",
    "post_attention_norm": "blk.{layer}.ffn_norm.weight",
    "attention_out_norm": "blk.{layer}.post_attention_norm.weight",
    "block_out_norm": "blk.{layer}.post_ffw_norm.weight",
    "mlp_out_norm": "blk.{layer}.post_ffw_norm_1.weight",
    "routed_norm": "blk.{layer}.pre_ffw_norm_2.weight",
    "routed_out_norm": "blk.{layer}.post_ffw_norm_2.weight",
    "layer_scale": "blk.{layer}.layer_output_scale.weight",
    "rope_factors": "rope_freqs.weight",
    "conv_in": "blk.{layer}.shortconv.in_proj.weight",
    "conv": "blk.{layer}.shortconv.conv.weight",
    "conv_out": "blk.{layer}.shortconv.out_proj.weight",
    "ssm_in": "blk.{layer}.ssm_in.weight",
    "ssm_conv": "blk.{layer}.ssm_conv1d.weight",
    "ssm_conv_bias": "blk.{layer}.ssm_conv1d.bias",
    "ssm_dt_bias": "blk.{layer}.ssm_dt.bias",
    "ssm_a": "blk.{layer}.ssm_a",
    "ssm_d": "blk.{layer}.ssm_d",
    "ssm_norm": "blk.{layer}.ssm_norm.weight",
    "ssm_out": "blk.{layer}.ssm_out.weight",
    "router": "blk.{layer}.ffn_gate_inp.weight",
    "router_linear_bias": "blk.{layer}.ffn_gate_inp.bias",
    "router_bias": "blk.{layer}.exp_probs_b.bias",
    "router_scale": "blk.{layer}.ffn_gate_inp.scale",
    "routed_scale": "blk.{layer}.ffn_down_exps.scale",
    "shared_router": "blk.{layer}.ffn_gate_inp_shexp.weight",
    "shared_gate": "blk.{layer}.ffn_gate_shexp.weight",
    "shared_up": "blk.{layer}.ffn_up_shexp.weight",
    "shared_down": "blk.{layer}.ffn_down_shexp.weight",
    "mlp_gate": "blk.{layer}.ffn_gate.weight",
    "mlp_up": "blk.{layer}.ffn_up.weight",
    "mlp_down": "blk.{layer}.ffn_down.weight",
}
_SAME_FREQUENCY = 1e-6
MERGED_NAME = "blk.{layer}.ffn_{projection}_exps.{kind}"
EXPERT_NAME = "blk.{layer}.ffn_{projection}.{expert}.{kind}"


@dataclass(frozen=True)
class Architecture:
    """One GGUF architecture, as llama.cpp reads it; `graph`: as it computes it.

    ``own_width``: the expert width has a key of its own (else it is feed_forward_length).
    ``permuted``: q and k rows are interleaved for llama.cpp's pairwise rotary embedding.
    ``square``: attention.key_length x heads must be the hidden size.
    ``output_needed``: a tied model still stores output.weight.
    ``names``: of roles that are called otherwise than in NAMES.
    ``leading_dense``: layers in front may be dense. ``router_keys``: the router's score, scale and
    renormalisation have keys; ``router_score``: the score alone has one.
    ``shared_needed``: where a family has shared experts, the graph reads
    them in every model. ``shared_width``: their width has a key; ``shared_count``: it is told as a
    number of routed experts. ``constants``, ``real_constants``: keys that llama.cpp asks for and
    that say the same of every model. ``width_by_layer``: feed_forward_length lists the layers, 0
    for those without experts. ``unrotated_key``: a key says that attention does not rotate.
    """

    name: str
    own_width: bool = True
    permuted: bool = False
    square: bool = False
    output_needed: bool = False
    leading_dense: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    router_keys: bool = False
    router_score: bool = False
    shared_needed: bool = True
    shared_width: bool = False
    shared_count: bool = False
    constants: tuple[tuple[str, int], ...] = ()
    real_constants: tuple[tuple[str, float], ...] = ()
    width_by_layer: bool = False
    unrotated_key: bool = False

    @property
    def graph(self) -> runnable_architectures.Architecture:
        """What its computation fixes: our runtime's row, which does as llama.cpp does."""
        return runnable_architectures.ARCHITECTURES[self.name]


_POST_ATTENTION = {"post_attention_norm": "blk.{layer}.post_attention_norm.weight"}
_DEEPSEEK2 = Architecture("deepseek2", leading_dense=True, router_keys=True, shared_count=True)
ARCHITECTURES = {
    "qwen2_moe": Architecture(
        "qwen2moe",
        square=True,
        output_needed=True,
        shared_width=True,
    ),
    "qwen3_moe": Architecture("qwen3moe"),
    "olmoe": Architecture("olmoe", own_width=False, square=True, output_needed=True),
    "mixtral": Architecture("llama", own_width=False, permuted=True),
    "gpt_oss": Architecture(
        "gpt-oss",
        output_needed=True,
        names=_POST_ATTENTION,
    ),
    "deepseek_v2": _DEEPSEEK2,
    "deepseek_v3": _DEEPSEEK2,
    "glm4_moe_lite": _DEEPSEEK2,
    "ernie4_5_moe": Architecture(
        "ernie4_5-moe",
        leading_dense=True,
        shared_needed=False,
        shared_width=True,
        constants=(("interleave_moe_layer_step", 1),),
    ),
    "qwen3_vl_moe": Architecture("qwen3vlmoe"),
    "glm4_moe": Architecture(
        "glm4moe",
        leading_dense=True,
        router_keys=True,
        shared_count=True,
        constants=(("nextn_predict_layers", 0),),
        names=_POST_ATTENTION,
    ),
    "gemma4": Architecture("gemma4"),
    "lfm2_moe": Architecture(
        "lfm2moe",
        leading_dense=True,
        square=True,
        names={"norm": "token_embd_norm.weight"},
        router_score=True,
    ),
    "nemotron_h": Architecture(
        "nemotron_h_moe",
        names={"post_attention_norm": "blk.{layer}.attn_norm.weight"},
        router_keys=True,
        shared_width=True,
        width_by_layer=True,
        real_constants=(("attention.layer_norm_epsilon", 1e-5),),
    ),
    "granitemoehybrid": Architecture(
        "granitehybrid",
        own_width=False,
        shared_width=True,
        shared_needed=False,
        unrotated_key=True,
    ),
    "qwen3_next": Architecture("qwen3next", shared_width=True, names=_POST_ATTENTION),
    "qwen3_5_moe": Architecture("qwen35moe", shared_width=True, names=_POST_ATTENTION),
}


def architecture(config: ModelConfig) -> Architecture:
    """The row of ``config``'s family; UserError when GGUF has none."""
    row = ARCHITECTURES.get(config.family.model_type)
    if row is None:
        raise UserError(
            f"GGUF cannot hold {config.family.model_type} yet",
            f"supported: {', '.join(sorted(ARCHITECTURES))}",
        )
    return row


def tensor_name(config: ModelConfig, role: str, layer: int | None) -> str:
    """The file's name of a tensor outside the routed experts."""
    return architecture(config).names.get(role, NAMES[role]).format(layer=layer)


def merged_name(layer: int, part: str) -> str:
    """Of one part (`ModelConfig.expert_parts`) of all experts of a layer."""
    return MERGED_NAME.format(layer=layer, **_part(part))


def expert_name(layer: int, expert: int, part: str) -> str:
    """Of one part of one expert."""
    return EXPERT_NAME.format(layer=layer, expert=expert, **_part(part))


def _part(part: str) -> dict[str, str]:
    projection, _, bias = part.partition("_")
    return {"projection": projection, "kind": bias or "weight"}


def expert_groups(config: ModelConfig) -> int:
    """Groups the router really chooses by: DeepSeek-V2's "greedy" ignores n_group, and choosing
    all of them is no choice (llama.cpp ends the process where a file says so)."""
    greedy = config.raw.get("topk_method", "greedy") == "greedy"
    ignored = greedy and config.family.router_score == "softmax"
    return 1 if ignored or config.topk_group == config.n_group else config.n_group


def check_architecture(config: ModelConfig) -> None:
    """Raise UserError with the reason where llama.cpp would compute something else."""
    row = architecture(config)
    for limits in (_expert_limits, _attention_limits, _rope_limits):
        for broken, reason in limits(config, row):
            if broken:
                raise UserError(
                    f"{config.family.model_type} cannot be written as GGUF: {reason}",
                    "run the pruned checkpoint with transformers instead",
                )


_Limits = tuple[tuple[bool, str], ...]


def _expert_limits(config: ModelConfig, row: Architecture) -> _Limits:
    dense = [layer for layer in config.mlp_layers if layer not in config.moe_layers]
    leading = row.leading_dense and dense == list(range(len(dense)))
    where = "has dense layers only in front" if row.leading_dense else "routes in every layer"
    does = "always" if row.graph.norm_topk else "never"
    groups = expert_groups(config)
    return (
        (
            row.graph.norm_topk not in (None, config.norm_topk_prob),
            f"llama.cpp {does} renormalises the top-k weights of {row.name}, "
            f"this model has norm_topk_prob = {str(config.norm_topk_prob).lower()}",
        ),
        (
            bool(dense) and not leading,
            f"layer {_listed(dense)} is dense, and llama.cpp's {row.name} {where}",
        ),
        (
            row.router_score and config.routed_scaling_factor != 1.0,
            f"llama.cpp's {row.name} has no factor for the experts' sum, this model has "
            f"routed_scaling_factor = {config.routed_scaling_factor:g}",
        ),
        (
            groups > 1 and config.family.router_score == "softmax",
            f"it picks expert groups by their best expert (n_group = {groups}), "
            "llama.cpp by the sum of the best two",
        ),
        (
            row.shared_needed
            and config.family.shared_block is not None
            and not config.shared_intermediate_size,
            f"llama.cpp's {row.name} needs a shared expert",
        ),
    )


def _attention_limits(config: ModelConfig, row: Architecture) -> _Limits:
    graph = row.graph
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_rows = heads * config.head_dim
    kinds = set(config.attention_layers)
    spans = {attention.window for attention in kinds}
    low_rank = config.mla is not None and config.mla.q_lora_rank is not None
    biased = config.o_bias and config.qkv_bias
    whole = [layer for layer, own in config.attention_by_layer.items() if own.window is None]
    period, layers = graph.window_period, range(config.num_hidden_layers)
    regular = [layer for layer in layers if period and (layer + 1) % period == 0]
    return (
        (
            (config.o_bias and not graph.output_bias)
            or (config.qkv_bias and not graph.attention_bias),
            f"llama.cpp loads no attention biases for {row.name}",
        ),
        (graph.output_bias and not biased, f"llama.cpp's {row.name} needs attention biases"),
        (
            bool(period) and (spans == {None} or whole != regular),
            f"in llama.cpp's {row.name} every {period}nd layer looks at the whole context and the "
            f"others at a window, in this model layer {_listed(whole)} do",
        ),
        (
            row.square and head_rows != config.hidden_size,
            f"llama.cpp's {row.name} needs heads x head_dim = hidden_size, "
            f"this model has {heads} x {config.head_dim} = {head_rows} and {config.hidden_size}",
        ),
        (
            config.qk_norm == "projection" and kv_heads != heads,
            f"llama.cpp's {row.name} needs as many KV heads as heads, "
            f"this model has {kv_heads} and {heads}",
        ),
        (
            graph.by_layer and len(kinds) > len(spans),
            f"llama.cpp's {row.name} has one head size for all layers that see everything, this "
            "model has several",
        ),
        (
            low_rank and config.num_hidden_layers in (26, 27),
            f"llama.cpp takes a deepseek2 model of {config.num_hidden_layers} layers for a Lite "
            "model, which has no q_lora_rank",
        ),
    )


def _rope_limits(config: ModelConfig, row: Architecture) -> _Limits:
    kind, scaling = config.rope.kind, config.rope.scaling
    fast, slow = scaling.get("beta_fast") or 32, scaling.get("beta_slow") or 1
    one, every = scaling.get("mscale"), scaling.get("mscale_all_dim")
    equal = bool(one) and one == every and not scaling.get("attention_factor")
    return (
        (
            kind == "yarn" and (fast, slow) != (BETA_FAST, BETA_SLOW),
            f"llama.cpp fixes YaRN's beta_fast and beta_slow of {row.name} at 32 and 1, "
            f"this model has {fast} and {slow}",
        ),
        (
            kind == "yarn" and scaling.get("truncate") is False and config.mla is not None,
            "llama.cpp always rounds YaRN's correction range (truncate = false)",
        ),
        (
            kind == "yarn" and config.mla is not None and not equal,
            f"llama.cpp's {row.name} needs YaRN's mscale and mscale_all_dim to be equal, "
            f"this model has {one} and {every}",
        ),
        (
            kind == "linear" and config.mla is not None,
            f"llama.cpp's {row.name} does not scale its rotary embedding linearly",
        ),
    )


def rounding_notes(config: ModelConfig) -> tuple[str, ...]:
    """What a stock llama.cpp computes otherwise than the model: it rounds the range of YaRN's
    ramp."""
    rope, scaling = config.rope, config.rope.scaling
    if rope.kind != "yarn" or scaling.get("truncate") is not False:
        return ()
    size = config.attention_layers[0].head_dim
    original = scaling.get("original_max_position_embeddings") or config.max_position_embeddings
    exact, rounded = (
        frequency_divisors(
            size, rope.theta, scaling["factor"], original, BETA_FAST, BETA_SLOW, truncate=truncate
        )
        for truncate in (False, True)
    )
    apart = np.maximum(exact / rounded, rounded / exact) - 1
    other = int((apart > _SAME_FREQUENCY).sum())
    if not other:
        return ()
    return (
        f"llama.cpp rounds YaRN's range, the model does not (truncate = false): {other} of "
        f"{len(apart)} rotations differ there, by up to {apart.max():.0%}; "
        "--layout per-expert is exact",
    )


def _listed(layers: list[int]) -> str:
    shown = ", ".join(map(str, layers[:4]))
    return shown + (f" and {len(layers) - 4} more" if len(layers) > 4 else "")
