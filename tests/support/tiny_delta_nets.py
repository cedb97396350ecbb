"""The tiny configs of Qwen3-Next and Qwen3.5: rows of `tiny.CONFIGS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DELTA_NET: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "full_attention_interval": 2,
    "head_dim": 32,
    "initializer_range": 0.02,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 16,
    "mlp_only_layers": [],
    "moe_intermediate_size": 96,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 2,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 64,
    "use_cache": True,
}


def delta_net_configs(common: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """``common``: the keys that all families' rows begin with."""
    return {
        "qwen3_next": common
        | _DELTA_NET
        | {
            "architectures": ["Qwen3NextForCausalLM"],
            "decoder_sparse_step": 1,
            "norm_topk_prob": True,
            "output_router_logits": False,
            "partial_rotary_factor": 0.25,
            "rope_scaling": None,
            "rope_theta": 10000000,
            "tie_word_embeddings": False,
            "use_sliding_window": False,
        },
        "qwen3_5_moe": {
            "architectures": ["Qwen3_5MoeForConditionalGeneration"],
            "image_token_id": 5,
            "text_config": {
                key: value for key, value in common.items() if key != "intermediate_size"
            }
            | _DELTA_NET
            | {
                "attn_output_gate": True,
                "layer_types": ["linear_attention", "full_attention", "linear_attention"],
                "mamba_ssm_dtype": "float32",
                "model_type": "qwen3_5_moe_text",
                "mtp_num_hidden_layers": 1,
                "mtp_use_dedicated_embeddings": False,
                "rope_parameters": {
                    "mrope_interleaved": True,
                    "mrope_section": [2, 1, 1],
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 10000000,
                    "rope_type": "default",
                },
            },
            "tie_word_embeddings": False,
            "video_token_id": 6,
            "vision_config": {
                "deepstack_visual_indexes": [],
                "depth": 1,
                "hidden_size": 32,
                "intermediate_size": 32,
                "model_type": "qwen3_5_moe",
                "num_heads": 2,
                "num_position_embeddings": 16,
                "out_hidden_size": 64,
                "patch_size": 4,
            },
            "vision_end_token_id": 8,
            "vision_start_token_id": 7,
        },
    }
