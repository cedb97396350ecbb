"""The published models of which some layers carry a state: rows of `published_configs`."""

from __future__ import annotations

from typing import Any

_LFM2_ATTENDS = (2, 6, 10, 14, 18, 21)
# Of Qwen3-Next and Qwen3.5 alike.
_DELTA_NET: dict[str, Any] = {
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 262144,
}

# repository: (parameters in billions, config.json)
CARRYING_A_STATE: dict[str, tuple[float, dict[str, Any]]] = {
    "LiquidAI/LFM2-8B-A1B": (
        8.34,
        {
            "architectures": ["Lfm2MoeForCausalLM"],
            "model_type": "lfm2_moe",
            "conv_L_cache": 3,
            "conv_bias": False,
            "dtype": "bfloat16",
            "hidden_size": 2048,
            "intermediate_size": 7168,
            "layer_types": [
                "full_attention" if layer in _LFM2_ATTENDS else "conv" for layer in range(24)
            ],
            "max_position_embeddings": 128000,
            "moe_intermediate_size": 1792,
            "norm_eps": 1e-05,
            "norm_topk_prob": True,
            "num_attention_heads": 32,
            "num_dense_layers": 2,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 24,
            "num_key_value_heads": 8,
            "rope_theta": 1000000.0,
            "routed_scaling_factor": 1.0,
            "tie_word_embeddings": True,
            "use_expert_bias": True,
            "vocab_size": 65536,
        },
    ),
    "Qwen/Qwen3.6-35B-A3B": (
        34.7,
        {
            "architectures": ["Qwen3_5MoeForConditionalGeneration"],
            "model_type": "qwen3_5_moe",
            "dtype": "bfloat16",
            "tie_word_embeddings": False,
            "text_config": _DELTA_NET
            | {
                "model_type": "qwen3_5_moe_text",
                "attn_output_gate": True,
                "mamba_ssm_dtype": "float32",
                "mtp_num_hidden_layers": 1,
                "num_hidden_layers": 40,
                "num_experts": 256,
                "num_experts_per_tok": 8,
                "rope_parameters": {
                    "mrope_interleaved": True,
                    "mrope_section": [11, 11, 10],
                    "partial_rotary_factor": 0.25,
                    "rope_theta": 10000000,
                    "rope_type": "default",
                },
                "vocab_size": 248320,
            },
        },
    ),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (
        79.7,
        _DELTA_NET
        | {
            "architectures": ["Qwen3NextForCausalLM"],
            "model_type": "qwen3_next",
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "intermediate_size": 5120,
            "num_hidden_layers": 48,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "norm_topk_prob": True,
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "vocab_size": 151936,
        },
    ),
}
