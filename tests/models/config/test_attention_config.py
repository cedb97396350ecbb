"""What each layer attends to and turns by, in every spelling of config.json."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import tiny
from transformers import AutoConfig

from tenp_edge.errors import UserError
from tenp_edge.models import FAMILIES, LayerAttention, ModelConfig, read_config

GEMMA = tiny.CONFIGS["gemma4_text"]
WITHIN = LayerAttention(heads=4, kv_heads=2, head_dim=16, window=16)
FULL = LayerAttention(heads=4, kv_heads=1, head_dim=32, own_values=False)
ALL, WINDOW = "full_attention", "sliding_attention"


def read(**changes: Any) -> ModelConfig:
    raw = {key: value for key, value in (GEMMA | changes).items() if value is not None}
    return read_config(raw, FAMILIES)


def test_layers_that_see_everything_have_heads_of_their_own() -> None:
    config = read()
    assert config.attention_layers == (WITHIN, FULL, FULL)
    assert [rope.theta for rope in config.layer_ropes] == [1e4, 1e6, 1e6]
    assert [own.cache_rows for own in config.attention_layers] == [(32, 32)] * 3


def test_as_transformers_saves_it() -> None:
    """It leaves the two keys out and lists what differs, layer by layer."""
    model = AutoConfig.for_model("gemma4_text", **{k: v for k, v in GEMMA.items() if k[0] != "m"})
    raw = model.to_dict()
    assert "global_head_dim" not in raw and set(raw["per_layer_config"]) == {"1", "2"}
    spelled = read(
        global_head_dim=None,
        num_global_key_value_heads=None,
        per_layer_config=raw["per_layer_config"],
    )
    assert spelled.attention_layers == read().attention_layers


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        # transformers lets the last layer see everything, whatever is said.
        ({"layer_types": ["sliding_attention"] * 3}, (WITHIN, WITHIN, FULL)),
        ({"layer_types": None, "num_hidden_layers": 7}, (WITHIN,) * 5 + (FULL,) * 2),
        # Without shared values the KV heads of the other layers count.
        (
            {"attention_k_eq_v": False, "layer_types": ["full_attention"] * 3},
            (LayerAttention(heads=4, kv_heads=2, head_dim=32),) * 3,
        ),
        ({"global_head_dim": None}, (WITHIN, *(LayerAttention(4, 1, 512, own_values=False),) * 2)),
    ],
    ids=("last", "every sixth", "own values", "transformers' default"),
)
def test_what_is_not_said(changes: dict[str, Any], wanted: tuple[LayerAttention, ...]) -> None:
    found = read(**changes).attention_layers
    assert found == wanted
    raw = {k: v for k, v in (GEMMA | changes).items() if v is not None and k != "model_type"}
    theirs = AutoConfig.for_model("gemma4_text", **raw)
    for layer, own in enumerate(found):
        assert theirs.per_layer_config[layer].head_dim == own.head_dim
        assert theirs.per_layer_config[layer].num_key_value_heads == own.kv_heads
        assert (theirs.layer_types[layer] == "sliding_attention") == (own.window is not None)


def test_one_geometry_where_a_family_has_one() -> None:
    config = read_config(tiny.CONFIGS["qwen3_moe"], FAMILIES)
    assert set(config.attention_layers) == {LayerAttention(heads=4, kv_heads=2, head_dim=32)}
    assert all(rope is config.rope for rope in config.layer_ropes)
    assert torch.tensor(read().logit_softcap) == 30.0 and config.logit_softcap is None


def config_of(family: str, **changes: Any) -> ModelConfig:
    raw = tiny.CONFIGS[family] | changes
    return read_config({key: value for key, value in raw.items() if value != "absent"}, FAMILIES)


@pytest.mark.parametrize(
    ("changes", "windows"),
    [
        ({}, [16, None, 16]),
        ({"layer_types": [ALL, ALL, WINDOW]}, [None, None, 16]),
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
    config = config_of("qwen3_moe", layer_types=[ALL] * 3, sliding_window=4096)
    assert set(config.attention_layers) == {LayerAttention(4, 2, 32)}
    latent = config_of("deepseek_v2").layer_attention(2)
    assert latent == LayerAttention(4, 4, 32, latent=48) and latent.cache_rows == (48,)


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        (
            {"layer_types": [ALL, "chunked_attention", ALL]},
            "config.json: layer_types with 'chunked_attention' is not supported",
            "supported: full_attention, sliding_attention",
        ),
        (
            {"layer_types": [ALL, WINDOW]},
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
def test_types_that_are_not_understood(changes: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(UserError) as caught:
        config_of("gpt_oss", **changes)
    assert str(caught.value) == f"{message}\ntry: {hint}"
