"""ERNIE-4.5: softmax scores, a bias that only selects, shared experts, neighbours rotated as pairs.

Multi-token prediction (model.mtp_*) is no part of the language model proper; it is left out.
"""

from tenp_edge.models.family import Family

FAMILY = Family(
    model_type="ernie4_5_moe",
    architecture="Ernie4_5_MoeForCausalLM",
    moe_block="mlp",
    projections=("gate_proj", "up_proj", "down_proj"),
    width_key="moe_intermediate_size",
    experts_key="moe_num_experts",
    attention="gqa",
    rope_pairs=True,
    shared_block="shared_experts",
    router_bias="moe_statics.e_score_correction_bias",
    router_bias_row=True,
    in_memory=(("moe_statics", "gate"),),
    always_norm_topk=True,
    defaults={
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "moe_k": 6,
        "moe_intermediate_size": 1536,
        "moe_layer_start_index": 1,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
        "rope_theta": 500000.0,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
    },
    allowed={
        "use_bias": (False, None),
        "moe_norm_min": (1e-12, None),
        "moe_gate": ("topk", None),
        "moe_gate_act": ("softmax", None),
        "moe_use_aux_free": (True, None),
    },
    extra_keys=(
        "moe_num_experts",
        "moe_num_shared_experts",
        "moe_k",
        "moe_layer_start_index",
        "moe_layer_end_index",
        "moe_layer_interval",
        "moe_capacity",
        "num_nextn_predict_layers",
        "num_mtp_layers",
    ),
)
