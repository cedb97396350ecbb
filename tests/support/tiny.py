"""Tiny real checkpoints of every family: a few layers, real tokenizers, random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from random_checkpoint import write_random_checkpoint
from support.tiny_states import state_configs
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tenp_edge.models import FAMILIES as MODELS
from tenp_edge.models import Mamba2, ModelConfig, read_config, state_bytes

VOCAB = 384
_COMMON: dict[str, Any] = {
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-6,
    "torch_dtype": "float32",
    "bos_token_id": 0,
    "eos_token_id": 0,
}
_MLA: dict[str, Any] = {
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 16,
    "moe_intermediate_size": 96,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
# One row per family; between them: tied and untied embeddings, biases, shared experts, dense first
# layers, groups, YaRN, and both spellings of every renamed key.
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_moe": _COMMON
    | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "norm_topk_prob": True,
        "tie_word_embeddings": True,
        "rope_theta": 1000000.0,
    },
    "qwen2_moe": _COMMON
    | {
        "architectures": ["Qwen2MoeForCausalLM"],
        "num_key_value_heads": 4,
        "num_experts": 6,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 96,
        "shared_expert_intermediate_size": 160,
        "norm_topk_prob": False,
        "tie_word_embeddings": False,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "olmoe": _COMMON
    | {
        "architectures": ["OlmoeForCausalLM"],
        "num_key_value_heads": 4,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "intermediate_size": 96,
        "norm_topk_prob": False,
        "tie_word_embeddings": False,
    },
    "mixtral": _COMMON
    | {
        "architectures": ["MixtralForCausalLM"],
        "num_key_value_heads": 2,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
        "rope_theta": 1000000.0,
    },
    "deepseek_v2": _COMMON
    | _MLA
    | {
        "architectures": ["DeepseekV2ForCausalLM"],
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "routed_scaling_factor": 1.5,
        "norm_topk_prob": False,
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
        },
    },
    "deepseek_v3": _COMMON
    | _MLA
    | {
        "architectures": ["DeepseekV3ForCausalLM"],
        "q_lora_rank": 48,
        "n_shared_experts": 1,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "n_group": 2,
        "topk_group": 1,
        "tie_word_embeddings": False,
        "rope_theta": 10000.0,
    },
    "gemma4_text": {key: value for key, value in _COMMON.items() if key != "hidden_act"}
    | {
        "architectures": ["Gemma4ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "final_logit_softcapping": 30.0,
        "global_head_dim": 32,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size_per_layer_input": 0,
        "initializer_range": 0.02,
        "layer_types": ["sliding_attention", "full_attention", "full_attention"],
        "moe_intermediate_size": 96,
        "num_experts": 8,
        "num_global_key_value_heads": 1,
        "num_key_value_heads": 2,
        "num_kv_shared_layers": 0,
        "pad_token_id": 0,
        "rope_parameters": {
            "full_attention": {
                "partial_rotary_factor": 0.25,
                "rope_theta": 1000000.0,
                "rope_type": "proportional",
            },
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 16,
        "tie_word_embeddings": True,
        "top_k_experts": 2,
        "use_bidirectional_attention": "vision",
        "use_cache": True,
        "use_double_wide_mlp": False,
        "vocab_size_per_layer_input": VOCAB,
    },
    "gpt_oss": _COMMON
    | {
        "architectures": ["GptOssForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "experts_per_token": 2,
        "head_dim": 32,
        "initial_context_length": 128,
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "num_experts_per_tok": 2,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "output_router_logits": False,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 4.0,
            "original_max_position_embeddings": 128,
            "rope_type": "yarn",
            "truncate": False,
        },
        # (original / 2 pi)^4: YaRN's range ends at dimension 4, where rounding it changes nothing.
        "rope_theta": 172235.0,
        "router_aux_loss_coef": 0.9,
        "sliding_window": 16,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "use_cache": True,
    },
}
CONFIGS |= {
    "glm4_moe_lite": _COMMON
    | _MLA
    | {
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "attention_bias": False,
        "n_group": 1,
        "n_routed_experts": 6,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 1.0,
        "q_lora_rank": 48,
        "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
        "routed_scaling_factor": 1.8,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "v_head_dim": 24,
    },
    "qwen3_vl_moe": {
        "architectures": ["Qwen3VLMoeForConditionalGeneration"],
        "image_token_id": 5,
        "text_config": _COMMON
        | {
            "attention_bias": False,
            "decoder_sparse_step": 1,
            "head_dim": 32,
            "mlp_only_layers": [],
            "model_type": "qwen3_vl_moe_text",
            "moe_intermediate_size": 96,
            "norm_topk_prob": True,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {
                "mrope_interleaved": True,
                "mrope_section": [6, 5, 5],
                "rope_type": "default",
            },
            "rope_theta": 5000000.0,
        },
        "tie_word_embeddings": False,
        "video_token_id": 6,
        "vision_config": {
            "deepstack_visual_indexes": [0, 1],
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 32,
            "model_type": "qwen3_vl_moe",
            "num_heads": 2,
            "num_position_embeddings": 16,
            "out_hidden_size": 64,
            "patch_size": 4,
        },
        "vision_end_token_id": 8,
        "vision_start_token_id": 7,
    },
    "glm4_moe": _COMMON
    | {
        "architectures": ["Glm4MoeForCausalLM"],
        "attention_bias": True,
        "first_k_dense_replace": 1,
        "head_dim": 32,
        "moe_intermediate_size": 96,
        "n_group": 1,
        "n_routed_experts": 6,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_experts_per_tok": 3,
        "num_key_value_heads": 2,
        "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.5,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "routed_scaling_factor": 1.0,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "use_qk_norm": False,
    },
    "ernie4_5_moe": _COMMON
    | {
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "head_dim": 16,
        "moe_capacity": [8, 8, 8],
        "moe_gate": "topk",
        "moe_intermediate_size": 96,
        "moe_k": 3,
        "moe_layer_end_index": -1,
        "moe_layer_interval": 1,
        "moe_layer_start_index": 1,
        "moe_num_experts": 6,
        "moe_num_shared_experts": 2,
        "moe_use_aux_free": True,
        "num_key_value_heads": 2,
        "num_nextn_predict_layers": 1,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "use_bias": False,
    },
}
CONFIGS |= state_configs(_COMMON)
for _name, _config in CONFIGS.items():
    _config["model_type"] = _name


def _has_mamba(config: ModelConfig) -> bool:
    return any(isinstance(mixer, Mamba2) for mixer in config.mixers)


FAMILIES = tuple(CONFIGS)
MLA_FAMILIES = tuple(name for name, config in CONFIGS.items() if "kv_lora_rank" in config)
# Whose experts transformers reads stacked only, as they are published; of those, transposed ones.
STACKED = ("gpt_oss", "qwen3_vl_moe", "gemma4_text", "granitemoehybrid")
TRANSPOSED = ("gpt_oss", "qwen3_vl_moe")
# Those with layers that carry a state.
STATE_FAMILIES = tuple(
    name for name, config in CONFIGS.items() if state_bytes(read_config(config, MODELS).mixers)
)
# Those without windows and states, whose places in a fixed cache are known beforehand.
STATIC_FAMILIES = tuple(
    name
    for name, config in CONFIGS.items()
    if "sliding_window" not in config and name not in STATE_FAMILIES
)
# Those that have a graph for onnxruntime.
ONNX_FAMILIES = tuple(
    name for name, config in CONFIGS.items() if not _has_mamba(read_config(config, MODELS))
)
# Those whose experts onnxruntime's own operators compute.
CPU_FAMILIES = tuple(name for name in ONNX_FAMILIES if name != "gemma4_text")

QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_tokenizer(directory: Path, vocab_size: int = VOCAB) -> None:
    """A byte-level BPE tokenizer in Qwen2's style, trained on a little text of our own, which stays
    as it is: every new word in it would move the tokens of all tests."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 8,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = Path(__file__).with_name("tokenizer_text.txt").read_text()
    tokenizer.train_from_iterator([text.partition("\n")[0].strip('"') * 20, text], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(directory)


def make(directory: Path, family: str, *, fused: bool = False, **changes: Any) -> Path:
    """A tiny checkpoint of ``family`` with ``changes`` to its config, tokenizer included."""
    raw, wrapped = CONFIGS[family], "text_config" in CONFIGS[family]
    raw = raw | {"text_config": raw["text_config"] | changes} if wrapped else raw | changes
    stacked = fused or family in STACKED
    write_random_checkpoint(directory, raw, fused=stacked, transposed=family in TRANSPOSED)
    write_tokenizer(directory)
    return directory


def experts_of(model: Any, layer: int) -> Any:
    """The experts' module of a transformers model's layer: the MoE block's, or the layer's own."""
    found = model.model.layers[layer]
    names = ("mlp", "feed_forward", "mixer", "block_sparse_moe")
    places = (found, *(getattr(found, name, None) for name in names))
    return next(place.experts for place in places if hasattr(place, "experts"))


def is_looked_up(family: str) -> bool:
    """Whether ggml has the family's activation in a table of float16 numbers."""
    return read_config(CONFIGS[family], MODELS).family.activation == "gelu_tanh"
