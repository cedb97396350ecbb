"""The sizes of published models: the numbers of their config.json that a plan depends on.

Facts, each from the config.json of the repository that is its key (Hugging Face hub); keys that
change no size are left out. `fit_table` checks each by its parameters, in billions, which are what
the model's own card says.
"""

from __future__ import annotations

from typing import Any

_DTYPE: dict[str, Any] = {"tie_word_embeddings": False, "torch_dtype": "bfloat16"}
_MLA: dict[str, Any] = {
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "hidden_size": 2048,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1408,
    "first_k_dense_replace": 1,
}

# repository: (parameters in billions, config.json)
PUBLISHED: dict[str, tuple[float, dict[str, Any]]] = {
    "allenai/OLMoE-1B-7B-0924": (
        6.92,
        _DTYPE
        | {
            "architectures": ["OlmoeForCausalLM"],
            "model_type": "olmoe",
            "hidden_size": 2048,
            "intermediate_size": 1024,
            "num_hidden_layers": 16,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
            "max_position_embeddings": 4096,
            "rope_theta": 10000.0,
            "vocab_size": 50304,
        },
    ),
    "Qwen/Qwen1.5-MoE-A2.7B": (
        14.3,
        _DTYPE
        | {
            "architectures": ["Qwen2MoeForCausalLM"],
            "model_type": "qwen2_moe",
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "norm_topk_prob": False,
            "max_position_embeddings": 8192,
            "rope_theta": 1000000.0,
            "vocab_size": 151936,
        },
    ),
    "deepseek-ai/DeepSeek-V2-Lite": (
        15.7,
        _DTYPE
        | _MLA
        | {
            "architectures": ["DeepseekV2ForCausalLM"],
            "model_type": "deepseek_v2",
            "intermediate_size": 10944,
            "norm_topk_prob": False,
            "topk_method": "greedy",
            "max_position_embeddings": 163840,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "type": "yarn",
                "factor": 40,
                "original_max_position_embeddings": 4096,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
            },
            "vocab_size": 102400,
        },
    ),
    "moonshotai/Moonlight-16B-A3B": (
        16.0,
        _DTYPE
        | _MLA
        | {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "intermediate_size": 11264,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.446,
            "max_position_embeddings": 8192,
            "rope_theta": 50000.0,
            "vocab_size": 163840,
        },
    ),
    "baidu/ERNIE-4.5-21B-A3B-PT": (
        21.8,
        _DTYPE
        | {
            "architectures": ["Ernie4_5_MoeForCausalLM"],
            "model_type": "ernie4_5_moe",
            "hidden_size": 2560,
            "intermediate_size": 12288,
            "num_hidden_layers": 28,
            "num_nextn_predict_layers": 1,
            "num_attention_heads": 20,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "moe_num_experts": 64,
            "moe_num_shared_experts": 2,
            "moe_k": 6,
            "moe_intermediate_size": 1536,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 27,
            "moe_layer_interval": 1,
            "moe_use_aux_free": True,
            "use_bias": False,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
            "vocab_size": 103424,
        },
    ),
    "zai-org/GLM-4.7-Flash": (
        29.9,
        _DTYPE
        | {
            "architectures": ["Glm4MoeLiteForCausalLM"],
            "model_type": "glm4_moe_lite",
            "hidden_size": 2048,
            "intermediate_size": 10240,
            "num_hidden_layers": 47,
            "num_nextn_predict_layers": 1,
            "num_attention_heads": 20,
            "num_key_value_heads": 20,
            "q_lora_rank": 768,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 192,
            "qk_rope_head_dim": 64,
            "v_head_dim": 256,
            "n_routed_experts": 64,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 1536,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.8,
            "partial_rotary_factor": 1.0,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 202752,
            "rope_theta": 1000000.0,
            "vocab_size": 154880,
        },
    ),
    "Qwen/Qwen3-30B-A3B": (
        30.5,
        _DTYPE
        | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "max_position_embeddings": 40960,
            "rope_theta": 1000000.0,
            "vocab_size": 151936,
        },
    ),
    "mistralai/Mixtral-8x7B-v0.1": (
        46.7,
        _DTYPE
        | {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
            "vocab_size": 32000,
        },
    ),
    "Qwen/Qwen2-57B-A14B": (
        57.4,
        _DTYPE
        | {
            "architectures": ["Qwen2MoeForCausalLM"],
            "model_type": "qwen2_moe",
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2560,
            "shared_expert_intermediate_size": 20480,
            "norm_topk_prob": False,
            "max_position_embeddings": 131072,
            "rope_theta": 1000000.0,
            "vocab_size": 151936,
        },
    ),
}
