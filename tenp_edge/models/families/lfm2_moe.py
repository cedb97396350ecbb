"""LFM2-MoE: three of four layers are short convolutions, whose state is two columns; the others
attend. Sigmoid router with a bias that only selects.

Tensors and some keys of config.json have names of their own.
"""

from tenp_edge.models.family import Family

FAMILY = Family(
    model_type="lfm2_moe",
    architecture="Lfm2MoeForCausalLM",
    moe_block="feed_forward",
    block_in_memory="feed_forward",
    projections=("w1", "w3", "w2"),
    width_key="moe_intermediate_size",
    experts_key="num_experts",
    attention="gqa",
    qk_norm="head",
    layer_kinds={"conv": "short convolution", "full_attention": "attention"},
    rotary_module="pos_emb",
    router_score="sigmoid",
    router_bias="expert_bias",
    router_sum_offset=1e-6,
    names={
        "input_norm": "operator_norm.weight",
        "post_attention_norm": "ffn_norm.weight",
        "norm": "embedding_norm.weight",
        "o": "self_attn.out_proj.weight",
        "q_norm": "self_attn.q_layernorm.weight",
        "k_norm": "self_attn.k_layernorm.weight",
        "mlp_gate": "feed_forward.w1.weight",
        "mlp_up": "feed_forward.w3.weight",
        "mlp_down": "feed_forward.w2.weight",
    },
    renamed_keys={
        "norm_eps": "rms_norm_eps",
        "num_dense_layers": "first_k_dense_replace",
        "tie_embedding": "tie_word_embeddings",
    },
    defaults={
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1792,
        "intermediate_size": 7168,
        "first_k_dense_replace": 2,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "conv_L_cache": 3,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128000,
        "rope_theta": 1000000.0,
    },
    allowed={"conv_bias": (False, None), "use_expert_bias": (True, None)},
    extra_keys=("conv_L_cache",),
)
