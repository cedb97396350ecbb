"""Qwen3.5 and Qwen3.6 with experts, the language model: Qwen3-Next's blocks under other names.

The delta net's matrices are one for q, k and v and one each for z, beta and alpha. A head's
frequencies are divided among time, height and width, which are one number for a text.
"""

from tenp_edge.models.family import Family
from tenp_edge.models.wrapper import Wrapper

FAMILY = Family(
    model_type="qwen3_5_moe",
    architecture="Qwen3_5MoeForCausalLM",
    wrapper=Wrapper(
        "qwen3_5_moe_text",
        parts=(
            "vision_config",
            "image_token_id",
            "video_token_id",
            "vision_start_token_id",
            "vision_end_token_id",
        ),
    ),
    moe_block="mlp",
    projections=("gate_proj", "up_proj", "down_proj"),
    width_key="moe_intermediate_size",
    experts_key="num_experts",
    attention="gqa",
    qk_norm="head",
    qkv_bias_key="attention_bias",
    o_bias_key="attention_bias",
    shared_block="shared_expert",
    shared_gated=True,
    always_norm_topk=True,
    rotary_part=0.25,
    rope_sections=True,
    attention_gate=True,
    zero_centred_norms=True,
    layer_kinds={"linear_attention": "gated delta net", "full_attention": "attention"},
    defaults={
        "hidden_size": 2048,
        "num_hidden_layers": 40,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "vocab_size": 248320,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "attention_bias": False,
        "full_attention_interval": 4,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "mrope_section": [11, 11, 10],
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 32768,
    },
    allowed={
        "attn_output_gate": (True, None),
        "output_gate_type": ("swish", "silu", None),
        "mlp_only_layers": ([], None),
        "decoder_sparse_step": (1, None),
    },
    extra_keys=(
        "shared_expert_intermediate_size",
        "partial_rotary_factor",
        "full_attention_interval",
        "linear_conv_kernel_dim",
        "linear_key_head_dim",
        "linear_value_head_dim",
        "linear_num_key_heads",
        "linear_num_value_heads",
        # Of the recurrence on a GPU, and of the heads that predict further tokens.
        "mamba_ssm_dtype",
        "mtp_num_hidden_layers",
        "mtp_use_dedicated_embeddings",
    ),
)
