"""Qwen3-MoE: no shared expert, RMSNorm on each head of q and k."""

from tenp_edge.models.family import Family

FAMILY = Family(
    model_type="qwen3_moe",
    architecture="Qwen3MoeForCausalLM",
    moe_block="mlp",
    projections=("gate_proj", "up_proj", "down_proj"),
    width_key="moe_intermediate_size",
    experts_key="num_experts",
    attention="gqa",
    qk_norm="head",
    qkv_bias_key="attention_bias",
    o_bias_key="attention_bias",
    defaults={
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "attention_bias": False,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
    },
    allowed={"use_sliding_window": (False, None)},
)
