"""DeepSeek-V3 and Moonlight: sigmoid router with a selection bias and expert groups.

Multi-token-prediction layers (num_nextn_predict_layers) are not part of the language model proper;
they are left out of every output, and the tool says so.
"""

from tenp_edge.models.family import Family

FAMILY = Family(
    model_type="deepseek_v3",
    architecture="DeepseekV3ForCausalLM",
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
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "attention_bias": False,
        "n_group": 8,
        "topk_group": 4,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
    },
    allowed={
        "topk_method": ("noaux_tc",),
        "scoring_func": ("sigmoid",),
        "moe_layer_freq": (1,),
        "rope_interleave": (True, None),
    },
    extra_keys=(
        "aux_loss_alpha",
        "seq_aux",
        "ep_size",
        "head_dim",
        "num_nextn_predict_layers",
        "num_mtp_layers",
    ),
)
