"""gpt-oss: experts, router and attention with biases, sinks, windows in every other layer.

Stacked experts lie transposed, the rows of gate and up in turns. The activation's constants are
fixed: llama.cpp has them in its code.
"""

from tenp_edge.models.family import Family

FAMILY = Family(
    model_type="gpt_oss",
    architecture="GptOssForCausalLM",
    moe_block="mlp",
    projections=("gate_proj", "up_proj", "down_proj"),
    width_key="intermediate_size",
    experts_key="num_local_experts",
    attention="gqa",
    qkv_bias_key="attention_bias",
    o_bias_key="attention_bias",
    router_score="softmax of the chosen",
    defaults={
        "num_local_experts": 128,
        "num_experts_per_tok": 4,
        "intermediate_size": 2880,
        "head_dim": 64,
        "sliding_window": 128,
        "attention_bias": True,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "rope_theta": 150000.0,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 32.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 4096,
        },
    },
    allowed={"swiglu_alpha": (1.702,), "swiglu_limit": (7.0,)},
    full_attention_every=2,
    activation="swiglu_oai",
    router="router",
    router_linear_bias=True,
    sinks=True,
    expert_bias=True,
    stacked=True,
    stacked_transposed=True,
    gate_up_interleaved=True,
    extra_keys=("experts_per_token", "initial_context_length"),
)
