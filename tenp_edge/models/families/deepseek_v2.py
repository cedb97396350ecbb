"""DeepSeek-V2 and V2-Lite: latent attention, leading dense layers, ungated shared experts."""

from tenp_edge.models.family import Family

FAMILY = Family(
    model_type="deepseek_v2",
    architecture="DeepseekV2ForCausalLM",
    moe_block="mlp",
    projections=("gate_proj", "up_proj", "down_proj"),
    width_key="moe_intermediate_size",
    experts_key="n_routed_experts",
    attention="mla",
    qkv_bias_key="attention_bias",
    o_bias_key="attention_bias",
    shared_block="shared_experts",
    defaults={
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "first_k_dense_replace": 0,
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": False,
        "attention_bias": False,
        "topk_method": "greedy",
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 2048,
    },
    allowed={
        "topk_method": ("greedy", "group_limited_greedy"),
        "scoring_func": ("softmax",),
        "moe_layer_freq": (1,),
        "mlp_bias": (False, None),
        "norm_topk_prob": (False, None),
    },
    extra_keys=("aux_loss_alpha", "seq_aux", "ep_size", "head_dim"),
)
