"""GLM-4.5 and GLM-4.5-Air: DeepSeek-V3's router and shared expert behind grouped attention, of
whose heads the first half is rotated.

Multi-token-prediction layers (num_nextn_predict_layers) are left out, as of DeepSeek-V3.
"""

from tenp_edge.models.family import Family

FAMILY = Family(
    model_type="glm4_moe",
    architecture="Glm4MoeForCausalLM",
    moe_block="mlp",
    projections=("gate_proj", "up_proj", "down_proj"),
    width_key="moe_intermediate_size",
    experts_key="n_routed_experts",
    attention="gqa",
    qk_norm="head",
    qk_norm_key="use_qk_norm",
    qkv_bias_key="attention_bias",
    rotary_part=0.5,
    shared_block="shared_experts",
    router_score="sigmoid",
    router_bias="gate.e_score_correction_bias",
    defaults={
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": True,
        "attention_bias": False,
        "use_qk_norm": False,
        "n_group": 1,
        "topk_group": 1,
        "num_key_value_heads": 8,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
    },
    allowed={
        "topk_method": ("noaux_tc", None),
        "scoring_func": ("sigmoid", None),
        "moe_layer_freq": (1, None),
    },
    extra_keys=(
        "ep_size",
        "partial_rotary_factor",
        "use_qk_norm",
        "num_nextn_predict_layers",
        "num_mtp_layers",
    ),
)
