"""Gemma 4 with experts (26B-A4B), its language model: every layer has a dense MLP beside them.

Norms stand before and after attention and feed forward. Most layers see a window; the others have
larger heads, and values that are their keys before norm and rotation.
"""

from tenp_edge.models.family import Family, LayerKeys

FAMILY = Family(
    model_type="gemma4_text",
    architecture="Gemma4ForCausalLM",
    moe_block="",
    projections=("gate_proj", "up_proj", "down_proj"),
    width_key="moe_intermediate_size",
    experts_key="num_experts",
    top_k_key="top_k_experts",
    attention="gqa",
    qk_norm="head",
    activation="gelu_tanh",
    activation_key="hidden_activation",
    router="router.proj",
    always_norm_topk=True,
    norms_after=True,
    dense_beside=True,
    residual_router=True,
    expert_scale=True,
    layer_scale=True,
    embedding_scale=True,
    value_norm=True,
    attention_scale=1.0,
    softcap_key="final_logit_softcapping",
    full_attention_every=6,
    layer_keys=LayerKeys(
        head_dim=("global_head_dim", 512),
        kv_heads="num_global_key_value_heads",
        shared_values="attention_k_eq_v",
        overrides="per_layer_config",
    ),
    defaults={
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262144,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "attention_k_eq_v": False,
        "enable_moe_block": False,
        "hidden_size_per_layer_input": 256,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {
                "rope_type": "proportional",
                "partial_rotary_factor": 0.25,
                "rope_theta": 1000000.0,
            },
        },
    },
    allowed={
        "enable_moe_block": (True,),
        "attention_bias": (False, None),
        "hidden_size_per_layer_input": (0, None),
        "num_kv_shared_layers": (0, None),
        "use_double_wide_mlp": (False, None),
        "use_bidirectional_attention": ("vision", None),
    },
    extra_keys=(
        "hidden_activation",
        "top_k_experts",
        "sliding_window",
        "layer_types",
        "global_head_dim",
        "num_global_key_value_heads",
        "attention_k_eq_v",
        "per_layer_config",
        "final_logit_softcapping",
        "vocab_size_per_layer_input",
    ),
)
