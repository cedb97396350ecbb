"""config.json: what is not understood is refused in its own words."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.edits import edit, refusal

from tenp_edge.models import FAMILIES, read_config
from tenp_edge.models.inspection import inspect_model

CheckpointOf = Callable[[str], Path]
SUPPORTED = ", ".join(sorted(FAMILIES))


_TURNING = {"rope_type": "default", "rope_theta": 1e4}
CONFIG_ERRORS: list[tuple[str, dict[str, Any], str, str | None]] = [
    (
        "qwen3_moe",
        {"model_type": "llama", "num_experts": None},
        "'llama' is a dense model: it has no routed experts to prune",
        f"a Mixture-of-Experts checkpoint of one of: {SUPPORTED}",
    ),
    (
        "qwen3_moe",
        {"model_type": "granitemoe"},
        "model family 'granitemoe' is not supported",
        f"supported: {SUPPORTED}",
    ),
    (
        "qwen3_moe",
        {"num_experts_per_tok": 9},
        "config.json contradicts itself: num_experts_per_tok is 9, the model has 8 experts",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"num_local_experts": 16},
        "config.json contradicts itself: num_experts is 8, num_local_experts is 16",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"dtype": "bfloat16"},
        "config.json contradicts itself: dtype is bfloat16, torch_dtype is float32",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen2_moe",
        {"hidden_size": 66},
        "config.json contradicts itself: hidden_size 66 does not divide by 4 heads",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"num_key_value_heads": 3},
        "config.json contradicts itself: 4 attention heads do not divide by 3 key/value heads",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "deepseek_v3",
        {"qk_head_dim": 7},
        "config.json contradicts itself: qk_head_dim is 7, its parts are 16 and 16",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "deepseek_v3",
        {"n_group": 3},
        "config.json contradicts itself: 8 experts do not divide into 3 groups",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "deepseek_v3",
        {"topk_group": 3},
        "config.json contradicts itself: topk_group is 3, there are 2 groups",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "deepseek_v3",
        {"num_experts_per_tok": 5},
        "config.json contradicts itself: 1 of 2 groups hold 4 experts, num_experts_per_tok is 5",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"mlp_only_layers": [0, 1, 2]},
        "config.json leaves no layer with routed experts",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"hidden_size": "64"},
        "config.json: hidden_size is '64', not a number above zero",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"vocab_size": 0},
        "config.json: vocab_size is 0, not a number above zero",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"rms_norm_eps": "tiny"},
        "config.json: rms_norm_eps is 'tiny', not a number",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"rope_scaling": [1]},
        "config.json: rope_scaling is [1], not an object",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"hidden_act": "gelu"},
        "config.json: hidden_act = 'gelu' is not supported",
        "supported: silu",
    ),
    (
        "qwen3_moe",
        {"rope_scaling": {"rope_type": "longrope"}},
        "config.json: rope type 'longrope' is not supported",
        "supported: default, linear, yarn",
    ),
    (
        "qwen3_moe",
        {"dual_chunk_attention": {"size": 1}},
        "config.json has keys that qwen3_moe does not know: dual_chunk_attention",
        "remove them if they do not change the model's arithmetic",
    ),
    (
        "qwen3_moe",
        {"torch_dtype": "float8_e4m3fn"},
        "config.json: dtype = 'float8_e4m3fn' is not supported",
        "supported: bfloat16, float16, float32",
    ),
    (
        "glm4_moe",
        {"partial_rotary_factor": 0.3},
        "config.json contradicts itself: 0.3 of a head of 32 is no even number to rotate",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "glm4_moe",
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
        "config.json contradicts itself: partial_rotary_factor is 0.5 and 0.25",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        "config.json: partial_rotary_factor = 0.5 is not supported",
        "supported: 1.0",
    ),
    (
        "qwen3_vl_moe",
        {"text_config": {}},
        "config.json has no text_config: qwen3_vl_moe wraps a language model, and this one has "
        "none",
        "the config.json and the weights of the whole model",
    ),
    (
        "ernie4_5_moe",
        {"moe_layer_end_index": 3},
        "config.json: moe_layer_end_index is 3, not -1 or a layer of 3",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "ernie4_5_moe",
        {"num_experts_per_tok": 2},
        "config.json contradicts itself: num_experts_per_tok is 2, moe_k is 3",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "ernie4_5_moe",
        {"use_bias": True},
        "config.json: use_bias = True is not supported",
        "supported: False, None",
    ),
    (
        "glm4_moe_lite",
        {"mlp_layer_types": ["dense", "moe", "moe"]},
        "config.json: mlp_layer_types is ['dense', 'moe', 'moe'], not a list of dense and sparse",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "glm4_moe_lite",
        {"mlp_layer_types": ["dense", "sparse"]},
        "config.json contradicts itself: mlp_layer_types has 2 layers, the model has 3",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "glm4_moe_lite",
        {"mlp_layer_types": ["dense"] * 3},
        "config.json leaves no layer with routed experts",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "glm4_moe_lite",
        {"first_k_dense_replace": 2},
        "config.json: first_k_dense_replace = 2 is not supported",
        "supported: 1, None",
    ),
    *(
        (
            "gemma4_text",
            {key: value},
            f"config.json: {key} = {value!r} is not supported",
            f"supported: {supported}",
        )
        for key, value, supported in (
            ("enable_moe_block", False, "True"),
            ("hidden_size_per_layer_input", 256, "0, None"),
            ("num_kv_shared_layers", 1, "0, None"),
            ("use_double_wide_mlp", True, "False, None"),
            ("use_bidirectional_attention", "all", "'vision', None"),
            ("hidden_activation", "silu", "gelu_pytorch_tanh"),
        )
    ),
    (
        "gemma4_text",
        {"hidden_size_per_layer_input": None},
        "config.json: hidden_size_per_layer_input = 256 is not supported",
        "supported: 0, None",
    ),
    (
        "gemma4_text",
        {"layer_types": ["sliding_attention", "full_attention"]},
        "config.json: layer_types is ['sliding_attention', 'full_attention'], not a list of 3 "
        "layers",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "gemma4_text",
        {"layer_types": ["sliding_attention", "chunked_attention", "full_attention"]},
        "config.json: layer_types with 'chunked_attention' is not supported",
        "supported: full_attention, sliding_attention",
    ),
    (
        "gemma4_text",
        {"num_global_key_value_heads": 3},
        "config.json contradicts itself: 4 attention heads do not divide by 3 key/value heads",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "gemma4_text",
        {"per_layer_config": [16]},
        "config.json: per_layer_config is [16], not an object of layers",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "gemma4_text",
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}},
        "config.json: rope_parameters is {'rope_theta': 10000.0, 'rope_type': 'default'}, not an "
        "object of full_attention and sliding_attention",
        "the config.json that belongs to the checkpoint",
    ),
    *(
        (
            "gemma4_text",
            {"rope_parameters": {"full_attention": full, "sliding_attention": _TURNING}},
            message,
            hint,
        )
        for full, message, hint in (
            (
                {"rope_type": "proportional", "rope_theta": 1e6, "factor": 8.0},
                "config.json: rope_parameters.full_attention.factor = 8.0 of the type proportional "
                "is not supported",
                "supported: 1.0",
            ),
            (
                {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 2},
                "config.json: rope_parameters.full_attention.partial_rotary_factor is 2, not a "
                "share of a head",
                "the config.json that belongs to the checkpoint",
            ),
        )
    ),
    (
        "qwen3_moe",
        {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e6}},
        "config.json: rope type 'proportional' is not supported",
        "supported: default, linear, yarn",
    ),
    (
        "qwen3_moe",
        {"tenp": {"expert_widths": {"0": [32] * 8}}},
        "config.json: the tenp section does not match the model's MoE layers",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"tenp": {"expert_widths": {"x": 3}}},
        "config.json: the tenp section is malformed",
        "the config.json that belongs to the checkpoint",
    ),
]


@pytest.mark.parametrize(
    ("family", "changes", "message", "hint"), CONFIG_ERRORS, ids=lambda value: str(value)[:40]
)
def test_config(
    family: str,
    changes: dict[str, Any],
    message: str,
    hint: str | None,
    checkpoint_of: CheckpointOf,
    tmp_path: Path,
) -> None:
    shutil.copytree(checkpoint_of(family), tmp_path / "model")
    kept = {key: value for key, value in changes.items() if value is not None}
    gone = [key for key, value in changes.items() if value is None]

    def change(raw: dict[str, Any]) -> None:
        raw.update(kept)
        for key in gone:
            del raw[key]

    edit(tmp_path / "model" / "config.json", change)
    assert refusal(lambda: inspect_model(tmp_path / "model")) == (message, hint)


def test_a_derived_key_that_agrees_is_read() -> None:
    """transformers 5 saves qk_head_dim, the sum of two others, with every DeepSeek model."""
    raw = dict(tiny.CONFIGS["deepseek_v3"])
    both = raw["qk_nope_head_dim"] + raw["qk_rope_head_dim"]
    assert read_config({**raw, "qk_head_dim": both}, FAMILIES).head_dim == both
