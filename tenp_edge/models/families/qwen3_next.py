"""Qwen3-Next: three of four layers are gated delta nets, the fourth is attention with a gate.

Norms multiply by 1 + weight, but for the delta net's own. A gated shared expert; a quarter of a
head is rotated. The delta net's matrices lie together, by key head: q, k, v, z and beta, alpha.
"""

from tenp_edge.models.family import Family

FAMILY = Family(
    model_type="qwen3_next",
    architecture="Qwen3NextForCausalLM",
    moe_block="mlp",
    projections=("gate_proj", "up_proj", "down_proj"),
    width_key="moe_intermediate_size",
    experts_key="num_experts",
    attention="gqa",
    qk_norm="head",
    qkv_bias_key="attention_bias",
    o_bias_key="attention_bias",
    shared_block="shared_expert",
    shared_gated=True,
    rotary_part=0.25,
    attention_gate=True,
    zero_centred_norms=True,
    layer_kinds={"linear_attention": "gated delta net", "full_attention": "attention"},
    joined_projections=True,
    defaults={
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "vocab_size": 151936,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "norm_topk_prob": True,
        "attention_bias": False,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
    },
    allowed={"use_sliding_window": (False, None)},
    extra_keys=(
        "shared_expert_intermediate_size",
        "partial_rotary_factor",
        "full_attention_interval",
        "linear_conv_kernel_dim",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_num_key_heads",
        "linear_num_value_heads",
    ),
)
