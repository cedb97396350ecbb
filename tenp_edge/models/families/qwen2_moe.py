"""Qwen1.5-MoE and Qwen2-MoE: a gated shared expert, q/k/v biases, no renormalisation."""

from tenp_edge.models.family import Family

FAMILY = Family(
    model_type="qwen2_moe",
    architecture="Qwen2MoeForCausalLM",
    moe_block="mlp",
    projections=("gate_proj", "up_proj", "down_proj"),
    width_key="moe_intermediate_size",
    experts_key="num_experts",
    attention="gqa",
    qkv_bias_key="qkv_bias",
    shared_block="shared_expert",
    shared_gated=True,
    defaults={
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "norm_topk_prob": False,
        "qkv_bias": True,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
    },
    allowed={"use_sliding_window": (False, None)},
    extra_keys=("shared_expert_intermediate_size", "qkv_bias"),
)
