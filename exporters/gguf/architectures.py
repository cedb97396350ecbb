"""How each family looks in GGUF: names and facts as tables, checked against llama.cpp itself.

Roles are those of `TensorSpec.role`; one table of names serves every architecture. What llama.cpp's
loader or graph fixes for an architecture (renormalised top-k, no biases, ...) is a fact of its row,
so that `check` can refuse a model that the file would describe wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass

from tenp_edge.errors import UserError
from tenp_edge.models import ModelConfig

NAMES = {
    "embed": "token_embd.weight",
    "norm": "output_norm.weight",
    "output": "output.weight",
    "input_norm": "blk.{layer}.attn_norm.weight",
    "q": "blk.{layer}.attn_q.weight",
    "k": "blk.{layer}.attn_k.weight",
    "v": "blk.{layer}.attn_v.weight",
    "o": "blk.{layer}.attn_output.weight",
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
    "post_attention_norm": "blk.{layer}.ffn_norm.weight",
    "router": "blk.{layer}.ffn_gate_inp.weight",
    "router_bias": "blk.{layer}.exp_probs_b.bias",
    "shared_router": "blk.{layer}.ffn_gate_inp_shexp.weight",
    "shared_gate": "blk.{layer}.ffn_gate_shexp.weight",
    "shared_up": "blk.{layer}.ffn_up_shexp.weight",
    "shared_down": "blk.{layer}.ffn_down_shexp.weight",
    "mlp_gate": "blk.{layer}.ffn_gate.weight",
    "mlp_up": "blk.{layer}.ffn_up.weight",
    "mlp_down": "blk.{layer}.ffn_down.weight",
}
MERGED_NAME = "blk.{layer}.ffn_{projection}_exps.weight"
EXPERT_NAME = "blk.{layer}.ffn_{projection}.{expert}.weight"


@dataclass(frozen=True)
class Architecture:
    """One GGUF architecture, as llama.cpp implements it.

    ``norm_topk``: whether it renormalises the top-k weights; None when a key says so.
    ``own_width``: the expert width has a key of its own (else it is feed_forward_length).
    ``permuted``: q and k rows are interleaved for llama.cpp's pairwise rotary embedding.
    ``square``: attention.key_length x heads must be the hidden size.
    ``output_needed``: a tied model still stores output.weight.
    """

    name: str
    norm_topk: bool | None
    own_width: bool = True
    permuted: bool = False
    square: bool = False
    output_needed: bool = False
    qkv_bias: bool = False
    leading_dense: bool = False


ARCHITECTURES = {
    "qwen2_moe": Architecture(
        "qwen2moe", norm_topk=False, square=True, output_needed=True, qkv_bias=True
    ),
    "qwen3_moe": Architecture("qwen3moe", norm_topk=True),
    "olmoe": Architecture(
        "olmoe", norm_topk=False, own_width=False, square=True, output_needed=True
    ),
    "mixtral": Architecture("llama", norm_topk=True, own_width=False, permuted=True),
    "deepseek_v2": Architecture("deepseek2", norm_topk=None, leading_dense=True),
    "deepseek_v3": Architecture("deepseek2", norm_topk=None, leading_dense=True),
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


def check_architecture(config: ModelConfig) -> None:
    """Raise UserError with the reason where llama.cpp would compute something else."""
    row, family = architecture(config), config.family.model_type
    for broken, reason in _limits(config, row):
        if broken:
            raise UserError(
                f"{family} cannot be written as GGUF: {reason}",
                "keep the pruned checkpoint (--skip-export) and run it with transformers",
            )


def _limits(config: ModelConfig, row: Architecture) -> tuple[tuple[bool, str], ...]:
    head_rows = config.num_attention_heads * config.head_dim
    dense = [layer for layer in range(config.num_hidden_layers) if layer not in config.moe_layers]
    leading = dense == list(range(len(dense)))
    does = "always renormalises" if row.norm_topk else "never renormalises"
    mla, rope = config.mla, config.rope
    return (
        (
            row.norm_topk is not None and config.norm_topk_prob != row.norm_topk,
            f"llama.cpp {does} the top-k weights of {row.name}, "
            f"this model has norm_topk_prob = {str(config.norm_topk_prob).lower()}",
        ),
        (
            config.o_bias or (config.qkv_bias and not row.qkv_bias),
            f"llama.cpp loads no attention biases for {row.name}",
        ),
        (
            bool(dense) and not (row.leading_dense and leading),
            f"layers {_listed(dense)} are dense, and llama.cpp's {row.name} "
            + ("has dense layers only in front" if row.leading_dense else "routes in every layer"),
        ),
        (
            row.square and head_rows != config.hidden_size,
            f"llama.cpp's {row.name} needs heads x head_dim = hidden_size, "
            f"not {config.num_attention_heads} x {config.head_dim} = {head_rows} "
            f"and {config.hidden_size}",
        ),
        (
            config.n_group > 1 and config.family.router_score == "softmax",
            f"it picks expert groups by their best expert (n_group = {config.n_group}), "
            "llama.cpp by the sum of the best two",
        ),
        (
            config.num_experts % config.n_group != 0,
            f"{config.num_experts} experts do not divide into {config.n_group} groups",
        ),
        (
            mla is not None
            and mla.q_lora_rank is not None
            and config.num_hidden_layers in (26, 27),
            f"llama.cpp takes a deepseek2 model of {config.num_hidden_layers} layers for a Lite "
            "model, which has no q_lora_rank",
        ),
        (
            rope.scaling.get("truncate") is False,
            "llama.cpp's YaRN always rounds its correction range (truncate = false)",
        ),
    )


def _listed(layers: list[int]) -> str:
    shown = ", ".join(map(str, layers[:4]))
    return shown + (f" and {len(layers) - 4} more" if len(layers) > 4 else "")
