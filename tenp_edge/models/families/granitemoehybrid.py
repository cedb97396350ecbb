"""Granite 4.0 H: Mamba2, in every tenth layer attention without rotation, and experts in each layer
beside a shared MLP. Embeddings, scores, what blocks put out and logits are scaled by numbers.

Experts, and the gate and up of the shared MLP, are stacked on disk.
"""

from math import inf

from tenp_edge.models.family import Family

FAMILY = Family(
    model_type="granitemoehybrid",
    architecture="GraniteMoeHybridForCausalLM",
    moe_block="block_sparse_moe",
    block_in_memory="block_sparse_moe",
    projections=("gate_proj", "up_proj", "down_proj"),
    width_key="intermediate_size",
    experts_key="num_local_experts",
    attention="gqa",
    rotary_module=None,
    router="router.layer",
    router_in_memory="router",
    router_score="softmax of the chosen",
    stacked=True,
    stacked_names=("input_linear.weight", "output_linear.weight"),
    shared_block="shared_mlp",
    shared_width_key="shared_intermediate_size",
    shared_stacked=True,
    multipliers=True,
    always_norm_topk=True,
    layer_kinds={
        "mamba": "mamba2",
        "linear_attention": "mamba2",
        "attention": "attention",
        "full_attention": "attention",
    },
    names={
        "shared_gate_up": "shared_mlp.input_linear.weight",
        "shared_down": "shared_mlp.output_linear.weight",
    },
    renamed_keys={
        "mamba_n_heads": "mamba_num_heads",
        "mamba_d_head": "mamba_head_dim",
        "mamba_d_state": "ssm_state_size",
        "mamba_n_groups": "n_groups",
        "mamba_d_conv": "conv_kernel",
        "layers_block_type": "layer_types",
    },
    defaults={
        "hidden_size": 4096,
        "vocab_size": 32000,
        "num_attention_heads": 32,
        "intermediate_size": 11008,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 1024,
        "max_position_embeddings": 2048,
        "mamba_num_heads": 128,
        "mamba_head_dim": "auto",
        "mamba_expand": 2,
        "ssm_state_size": 256,
        "n_groups": 1,
        "conv_kernel": 4,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
    allowed={
        "position_embedding_type": ("nope", None),
        "normalization_function": ("rmsnorm", None),
        "attention_bias": (False, None),
        "mamba_conv_bias": (True, None),
        "mamba_proj_bias": (False, None),
        "mamba_expand": (2, None),
        "time_step_limit": ([0.0, inf], [0.0, {"__float__": "Infinity"}], None),
    },
    extra_keys=(
        "embedding_multiplier",
        "attention_multiplier",
        "residual_multiplier",
        "logits_scaling",
        "shared_intermediate_size",
        "mamba_chunk_size",
        "init_method",
    ),
)
