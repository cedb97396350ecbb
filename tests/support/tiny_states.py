"""The tiny configs of families whose layers carry a state: rows of `tiny.CONFIGS`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NOT_IN_LFM2 = ("hidden_act", "rms_norm_eps")
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


def _delta_net_configs(common: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
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


def state_configs(common: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """By family; ``common`` is in all."""
    configs = {
        "lfm2_moe": {key: value for key, value in common.items() if key not in _NOT_IN_LFM2}
        | {
            "architectures": ["Lfm2MoeForCausalLM"],
            "conv_L_cache": 3,
            "conv_bias": False,
            "initializer_range": 0.02,
            "layer_types": ["conv", "full_attention", "conv"],
            "moe_intermediate_size": 96,
            "norm_eps": 1e-5,
            "norm_topk_prob": True,
            "num_dense_layers": 1,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "rope_theta": 1000000.0,
            "routed_scaling_factor": 1.0,
            "tie_word_embeddings": True,
            "use_cache": True,
            "use_expert_bias": True,
        },
        "nemotron_h": {key: value for key, value in common.items() if key not in _NOT_IN_LFM2}
        | {
            "architectures": ["NemotronHForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "chunk_size": 16,
            "conv_kernel": 4,
            "expand": 2,
            "head_dim": 32,
            "hidden_dropout": 0.0,
            "hybrid_override_pattern": "ME*ME",
            "initializer_range": 0.02,
            "intermediate_size": 96,
            "layer_norm_epsilon": 1e-5,
            "mamba_head_dim": 16,
            "mamba_hidden_act": "silu",
            "mamba_num_heads": 8,
            "mamba_proj_bias": False,
            "mamba_ssm_cache_dtype": "float32",
            "mlp_bias": False,
            "mlp_hidden_act": "relu2",
            "moe_intermediate_size": 96,
            "moe_shared_expert_intermediate_size": 160,
            "n_group": 1,
            "n_groups": 2,
            "n_routed_experts": 6,
            "n_shared_experts": 1,
            "norm_eps": 1e-5,
            "norm_topk_prob": True,
            "num_experts_per_tok": 3,
            "num_hidden_layers": 5,
            "num_key_value_heads": 2,
            "num_logits_to_keep": 1,
            "num_nextn_predict_layers": 1,
            "pad_token_id": 0,
            "partial_rotary_factor": 1.0,
            "rescale_prenorm_residual": True,
            "residual_in_fp32": False,
            "rope_theta": 10000,
            "routed_scaling_factor": 2.5,
            "sliding_window": None,
            "ssm_state_size": 16,
            "tie_word_embeddings": False,
            "time_step_floor": 0.0001,
            "time_step_max": 0.1,
            "time_step_min": 0.001,
            "topk_group": 1,
            "use_bias": False,
            "use_cache": True,
            "use_conv_bias": True,
            "use_mamba_kernels": True,
        },
        "granitemoehybrid": common
        | {
            "architectures": ["GraniteMoeHybridForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attention_multiplier": 0.125,
            "embedding_multiplier": 0.5,
            "init_method": "mup",
            "initializer_range": 0.1,
            "intermediate_size": 96,
            "layer_types": ["mamba", "attention", "mamba"],
            "logits_scaling": 6,
            "mamba_chunk_size": 16,
            "mamba_conv_bias": True,
            "mamba_d_conv": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 16,
            "mamba_expand": 2,
            "mamba_n_groups": 1,
            "mamba_n_heads": 8,
            "mamba_proj_bias": False,
            "normalization_function": "rmsnorm",
            "num_experts_per_tok": 3,
            "num_key_value_heads": 2,
            "num_local_experts": 8,
            "output_router_logits": False,
            "pad_token_id": 0,
            "position_embedding_type": "nope",
            "residual_multiplier": 0.5,
            "rms_norm_eps": 1e-5,
            "rope_scaling": None,
            "rope_theta": 10000,
            "router_aux_loss_coef": 0.0,
            "shared_intermediate_size": 160,
            "tie_word_embeddings": True,
            "use_cache": True,
        },
    }
    return configs | _delta_net_configs(common)
