"""What config.json says of each layer's attention, in either spelling."""

from __future__ import annotations

from typing import Any

import pytest
from support import tiny

from tenp_edge.errors import UserError
from tenp_edge.models import FAMILIES, LayerAttention, ModelConfig, read_config

FULL, WINDOW = "full_attention", "sliding_attention"


def config_of(family: str, **changes: Any) -> ModelConfig:
    raw = tiny.CONFIGS[family] | changes
    return read_config({key: value for key, value in raw.items() if value != "absent"}, FAMILIES)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, [16, None, 16]),
        ({"layer_types": [FULL, FULL, WINDOW]}, [None, None, 16]),
        ({"layer_types": "absent", "num_hidden_layers": 5}, [16, None, 16, None, 16]),
        ({"layer_types": None, "sliding_window": "absent"}, [128, None, 128]),
    ],
)
def test_windows_of_gpt_oss(changes: dict[str, Any], windows: list[int | None]) -> None:
    config = config_of("gpt_oss", **changes)
    assert [own.window for own in config.attention_layers] == windows
    assert config.layer_attention(0) == LayerAttention(4, 2, 32, windows[0])
    assert config.layer_attention(0).cache_rows == (64, 64)


def test_layers_that_are_alike() -> None:
    """A list of types is inert where the family has no windows."""
    config = config_of("qwen3_moe", layer_types=[FULL] * 3, sliding_window=4096)
    assert set(config.attention_layers) == {LayerAttention(4, 2, 32)}
    latent = config_of("deepseek_v2").layer_attention(2)
    assert latent == LayerAttention(4, 4, 32, latent=48) and latent.cache_rows == (48,)


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        (
            {"layer_types": [FULL, "chunked_attention", FULL]},
            "config.json: layer_types with 'chunked_attention' is not supported",
            "supported: full_attention, sliding_attention",
        ),
        (
            {"layer_types": [FULL, WINDOW]},
            "config.json: layer_types is ['full_attention', 'sliding_attention'], not a list of 3 "
            "layers",
            "the config.json that belongs to the checkpoint",
        ),
        (
            {"sliding_window": 0},
            "config.json: sliding_window is 0, not a number above zero",
            "the config.json that belongs to the checkpoint",
        ),
        (
            {"swiglu_limit": 5.0},
            "config.json: swiglu_limit = 5.0 is not supported",
            "supported: 7.0",
        ),
    ],
)
def test_what_is_not_understood(changes: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        config_of("gpt_oss", **changes)
    assert str(caught.value) == f"{message}\ntry: {hint}"
