"""GLM-4.7-Flash: DeepSeek-V3's latent attention and router, without expert groups.

Which layers route is a list of its own (mlp_layer_types); transformers reads nothing else for it.
"""

from tenp_edge.models.family import Family

FAMILY = Family(
    model_type="glm4_moe_lite",
    architecture="Glm4MoeLiteForCausalLM",
    moe_block="mlp",
    projections=("gate_proj", "up_proj", "down_proj"),
    width_key="moe_intermediate_size",
    experts_key="n_routed_experts",
    attention="mla",
    qkv_bias_key="attention_bias",
    o_bias_key="attention_bias",
    shared_block="shared_experts",
    router_score="sigmoid",
    router_bias="gate.e_score_correction_bias",
    defaults={
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1536,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.8,
        "norm_topk_prob": True,
        "attention_bias": False,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 768,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "v_head_dim": 256,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 202752,
    },
    allowed={
        "first_k_dense_replace": (1, None),
        "topk_method": ("noaux_tc", None),
        "scoring_func": ("sigmoid", None),
        "moe_layer_freq": (1, None),
        "rope_interleave": (True, None),
        "partial_rotary_factor": (1.0, None),
    },
    extra_keys=(
        "ep_size",
        "mlp_layer_types",
        "num_nextn_predict_layers",
        "num_mtp_layers",
    ),
)
