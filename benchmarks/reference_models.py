"""The three reference models: small, of the shapes whose pruning is to be measured."""

from typing import Any

from moe_training import padded_experts_forward
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    PretrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

assert padded_experts_forward  # importing it registers the experts' implementation "padded"

_COMMON: dict[str, Any] = {
    "hidden_size": 192,
    "num_hidden_layers": 6,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-6,
    "bos_token_id": None,
}
_ATTENTION: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 2}
CONFIGS: dict[str, tuple[type[PretrainedConfig], dict[str, Any]]] = {
    "qwen3_moe": (
        Qwen3MoeConfig,
        _ATTENTION
        | {
            "head_dim": 32,
            "intermediate_size": 512,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 192,
            "norm_topk_prob": True,
            "rope_theta": 10000.0,
        },
    ),
    "qwen2_moe": (
        Qwen2MoeConfig,
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "intermediate_size": 512,
            "num_experts": 48,
            "num_experts_per_tok": 6,
            "moe_intermediate_size": 128,
            "shared_expert_intermediate_size": 256,
            "norm_topk_prob": False,
            "rope_theta": 10000.0,
        },
    ),
    "deepseek_v3": (
        DeepseekV3Config,
        {
            "num_attention_heads": 6,
            "num_key_value_heads": 6,
            "q_lora_rank": None,
            "kv_lora_rank": 64,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "v_head_dim": 32,
            "intermediate_size": 512,
            "first_k_dense_replace": 1,
            "n_routed_experts": 40,
            "n_shared_experts": 1,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 192,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.0,
            "num_nextn_predict_layers": 0,
            "rope_theta": 10000.0,
        },
    ),
}


FULL_SIZE = tuple(CONFIGS)
# A quarter of the work a token: what two cores can train until the neurons are used.
_SMALL: dict[str, Any] = {"hidden_size": 96, "num_hidden_layers": 4}
_SMALL_ATTENTION: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS |= {
    "qwen3_moe_small": (
        Qwen3MoeConfig,
        CONFIGS["qwen3_moe"][1]
        | _SMALL
        | _SMALL_ATTENTION
        | {"head_dim": 24, "intermediate_size": 256, "moe_intermediate_size": 96},
    ),
    "qwen2_moe_small": (
        Qwen2MoeConfig,
        CONFIGS["qwen2_moe"][1]
        | _SMALL
        | _SMALL_ATTENTION
        | {
            "intermediate_size": 256,
            "num_experts": 64,
            "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 96,
        },
    ),
    "deepseek_v3_small": (
        DeepseekV3Config,
        CONFIGS["deepseek_v3"][1]
        | _SMALL
        | {
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "kv_lora_rank": 48,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 24,
            "intermediate_size": 256,
            "moe_intermediate_size": 96,
        },
    ),
}

# Rows of whole K- and IQ-blocks of 256 weights, so that every tensor type of ggml can hold them.
_BLOCKS: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "moe_intermediate_size": 256,
}
CONFIGS |= {
    "qwen3_moe_blocks": (
        Qwen3MoeConfig,
        CONFIGS["qwen3_moe"][1] | _BLOCKS | {"head_dim": 64, "num_key_value_heads": 4},
    ),
    "qwen2_moe_blocks": (
        Qwen2MoeConfig,
        CONFIGS["qwen2_moe"][1]
        | _BLOCKS
        | {
            "num_key_value_heads": 4,
            "num_experts": 40,
            "num_experts_per_tok": 4,
            "shared_expert_intermediate_size": 256,
        },
    ),
}


def make_model(name: str, vocab_size: int, end_of_text: int) -> Any:
    """The model ``name`` with fresh weights, its experts computed by `padded_experts_forward`."""
    kind, own = CONFIGS[name]
    config = kind(
        **_COMMON | own, vocab_size=vocab_size, eos_token_id=end_of_text, pad_token_id=end_of_text
    )
    config._experts_implementation = "padded"
    return AutoModelForCausalLM.from_config(config)
