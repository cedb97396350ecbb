"""The published models of which some layers carry a state: rows of `published_configs`."""

from __future__ import annotations

from typing import Any

_LFM2_ATTENDS = (2, 6, 10, 14, 18, 21)
_GRANITE_ATTENDS = (5, 15, 25, 35)
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
    "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": (
        31.58,
        {
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "architectures": ["NemotronHForCausalLM"],
            "model_type": "nemotron_h",
            "conv_kernel": 4,
            "head_dim": 128,
            "hidden_size": 2688,
            "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
            "intermediate_size": 1856,
            "layer_norm_epsilon": 1e-05,
            "mamba_head_dim": 64,
            "mamba_num_heads": 64,
            "max_position_embeddings": 262144,
            "moe_intermediate_size": 1856,
            "moe_shared_expert_intermediate_size": 3712,
            "n_groups": 8,
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_attention_heads": 32,
            "num_experts_per_tok": 6,
            "num_hidden_layers": 52,
            "num_key_value_heads": 2,
            "routed_scaling_factor": 2.5,
            "ssm_state_size": 128,
            "vocab_size": 131072,
        },
    ),
    "ibm-granite/granite-4.0-h-tiny": (
        6.94,
        {
            "architectures": ["GraniteMoeHybridForCausalLM"],
            "model_type": "granitemoehybrid",
            "attention_multiplier": 0.0078125,
            "embedding_multiplier": 12,
            "hidden_size": 1536,
            "intermediate_size": 512,
            "layer_types": [
                "attention" if layer in _GRANITE_ATTENDS else "mamba" for layer in range(40)
            ],
            "logits_scaling": 6,
            "mamba_d_conv": 4,
            "mamba_d_head": 64,
            "mamba_d_state": 128,
            "mamba_expand": 2,
            "mamba_n_groups": 1,
            "mamba_n_heads": 48,
            "max_position_embeddings": 131072,
            "num_attention_heads": 12,
            "num_experts_per_tok": 6,
            "num_hidden_layers": 40,
            "num_key_value_heads": 4,
            "num_local_experts": 64,
            "position_embedding_type": "nope",
            "residual_multiplier": 0.22,
            "rms_norm_eps": 1e-05,
            "shared_intermediate_size": 1024,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "vocab_size": 100352,
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
