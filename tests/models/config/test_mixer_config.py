"""What each layer mixes tokens with, in either spelling; kinds that nobody knows are refused."""

from __future__ import annotations

from typing import Any

import pytest
from published_configs import PUBLISHED
from support import tiny
from transformers import AutoConfig

from tenp_edge.errors import UserError
from tenp_edge.models import (
    FAMILIES,
    LayerAttention,
    ModelConfig,
    ShortConvolution,
    read_config,
    state_bytes,
)

CONVOLUTION, ATTENDS = ShortConvolution(64, 3), LayerAttention(heads=4, kv_heads=2, head_dim=16)
BELONGS = "the config.json that belongs to the checkpoint"


def config_of(**changes: Any) -> ModelConfig:
    raw = tiny.CONFIGS["lfm2_moe"] | changes
    return read_config({key: value for key, value in raw.items() if value != "absent"}, FAMILIES)


def test_a_state_is_of_one_size() -> None:
    config = config_of()
    assert config.mixers == (CONVOLUTION, ATTENDS, CONVOLUTION)
    assert config.attention_by_layer == {1: ATTENDS} and config.layer_attention(1) == ATTENDS
    assert CONVOLUTION.cache_rows == () and CONVOLUTION.state_shapes == {"conv": (2, 64)}
    assert ATTENDS.cache_rows == (32, 32) and ATTENDS.state_shapes == {}
    assert state_bytes(config.mixers) == 2 * 4 * 2 * 64
    assert state_bytes(config_of(conv_L_cache=5).mixers) == 2 * 4 * 4 * 64
    assert state_bytes(read_config(tiny.CONFIGS["qwen3_moe"], FAMILIES).mixers) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"norm_eps": "absent", "rms_norm_eps": 1e-5},
        {"num_dense_layers": "absent", "first_k_dense_replace": 1},
        {"tie_word_embeddings": "absent"},
        {"tie_word_embeddings": "absent", "tie_embedding": True},
        {"tie_embedding": True},
        {"torch_dtype": "absent", "dtype": "float32"},
        {
            "rope_theta": "absent",
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
        {"rope_theta": "absent"},
        {"conv_L_cache": "absent", "conv_bias": "absent", "use_expert_bias": "absent"},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_every_spelling_is_one_model(changes: dict[str, Any]) -> None:
    def facts(config: ModelConfig) -> list[Any]:
        names = ("mixers", "mlp_layers", "moe_layers", "rms_norm_eps", "tie_word_embeddings")
        more = ("rope", "dtype", "norm_topk_prob", "qk_norm", "num_experts_per_tok")
        return [getattr(config, name) for name in (*names, *more)]

    assert facts(config_of(**changes)) == facts(config_of())


def test_defaults_are_transformers() -> None:
    """Of every key that the published config may leave out."""
    _, raw = PUBLISHED["LiquidAI/LFM2-8B-A1B"]
    asked = ("model_type", "layer_types", "num_hidden_layers", "hidden_size", "vocab_size")
    least = {key: raw[key] for key in asked}
    theirs, ours = AutoConfig.for_model(**least), read_config(least, FAMILIES)
    published = read_config(raw, FAMILIES)
    assert ours.rope.theta == theirs.rope_parameters["rope_theta"] == published.rope.theta
    for own, name in (
        (ours.moe_intermediate_size, "moe_intermediate_size"),
        (ours.intermediate_size, "intermediate_size"),
        (ours.num_experts, "num_experts"),
        (ours.num_experts_per_tok, "num_experts_per_tok"),
        (ours.num_attention_heads, "num_attention_heads"),
        (ours.num_key_value_heads, "num_key_value_heads"),
        (ours.max_position_embeddings, "max_position_embeddings"),
        (ours.rms_norm_eps, "norm_eps"),
        (ours.tie_word_embeddings, "tie_word_embeddings"),
        (ours.norm_topk_prob, "norm_topk_prob"),
        (ours.routed_scaling_factor, "routed_scaling_factor"),
        (min(ours.moe_layers), "num_dense_layers"),
    ):
        assert own == getattr(theirs, name), name
    assert ours.mixers[0] == ShortConvolution(2048, theirs.conv_L_cache)
    assert sorted(published.attention_by_layer) == [2, 6, 10, 14, 18, 21]
    assert state_bytes(published.mixers) == 18 * 2 * 2048 * 4


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        (
            {"layer_types": ["conv", "full_attention", "mamba"]},
            "config.json: layer_types with 'mamba' is not supported",
            "supported: conv, full_attention",
        ),
        (
            {"layer_types": ["conv", ["conv"], "full_attention"]},
            "config.json: layer_types with ['conv'] is not supported",
            "supported: conv, full_attention",
        ),
        (
            {"layer_types": "absent"},
            "config.json: layer_types is None, not a list of 3 layers",
            BELONGS,
        ),
        (
            {"layer_types": ["conv"] * 3},
            "config.json contradicts itself: layer_types names no layer that attends",
            BELONGS,
        ),
        (
            {"conv_L_cache": 1},
            "config.json: conv_L_cache = 1 is not supported",
            "supported: 2 or more",
        ),
        (
            {"conv_L_cache": 65},
            "config.json: conv_L_cache is 65; no model has more than 64",
            BELONGS,
        ),
        (
            {"conv_bias": True},
            "config.json: conv_bias = True is not supported",
            "supported: False, None",
        ),
        (
            {"use_expert_bias": False},
            "config.json: use_expert_bias = False is not supported",
            "supported: True, None",
        ),
        (
            {"tie_embedding": False},
            "config.json contradicts itself: tie_embedding is False, tie_word_embeddings is True",
            BELONGS,
        ),
        (
            {"norm_eps": float("nan")},
            "config.json: rms_norm_eps is nan, not a number of zero or more",
            BELONGS,
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_understood(changes: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        config_of(**changes)
    assert str(caught.value) == f"{message}\ntry: {hint}"
