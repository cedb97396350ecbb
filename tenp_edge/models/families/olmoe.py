"""OLMoE: RMSNorm over the whole q and k projections; an expert is a full-size MLP."""

from tenp_edge.models.family import Family

FAMILY = Family(
    model_type="olmoe",
    architecture="OlmoeForCausalLM",
    moe_block="mlp",
    projections=("gate_proj", "up_proj", "down_proj"),
    width_key="intermediate_size",
    experts_key="num_experts",
    attention="gqa",
    qk_norm="projection",
    qkv_bias_key="attention_bias",
    o_bias_key="attention_bias",
    defaults={
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "attention_bias": False,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
    },
    allowed={"clip_qkv": (None,)},
    extra_keys=("clip_qkv",),
)
