"""Gated delta nets and what Qwen3-Next and Qwen3.5 have beside them, in either spelling."""

from __future__ import annotations

from typing import Any

import pytest
from published_configs import PUBLISHED
from support import tiny
from transformers import AutoConfig

from tenp_edge.errors import UserError
from tenp_edge.models import (
    FAMILIES,
    DeltaNet,
    LayerAttention,
    ModelConfig,
    VisionFacts,
    read_config,
    state_bytes,
)

NET = DeltaNet(key_heads=2, value_heads=4, head_dim=16, taps=4)
ATTENDS = LayerAttention(heads=4, kv_heads=2, head_dim=32)
BELONGS = "the config.json that belongs to the checkpoint"
ROPE = tiny.CONFIGS["qwen3_5_moe"]["text_config"]["rope_parameters"]
FACTS = (
    "mixers mlp_layers moe_layers rms_norm_eps tie_word_embeddings rope dtype norm_topk_prob "
    "qk_norm num_experts_per_tok shared_intermediate_size vision"
).split()


def config_of(family: str, **changes: Any) -> ModelConfig:
    raw = tiny.CONFIGS[family]
    if "text_config" in raw:
        return read_config(raw | {"text_config": _changed(raw["text_config"], changes)}, FAMILIES)
    return read_config(_changed(raw, changes), FAMILIES)


def _changed(raw: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in (raw | changes).items() if value != "absent"}


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5_moe"])
def test_a_state_is_the_last_inputs_and_a_matrix_for_each_head(family: str) -> None:
    config = config_of(family)
    assert config.mixers == (NET, ATTENDS, NET)
    assert NET.channels == 2 * 2 * 16 + 4 * 16 and NET.cache_rows == ()
    assert NET.state_shapes == {"conv": (3, 128), "memory": (16, 16, 4)}
    assert state_bytes(config.mixers) == 2 * 4 * (3 * 128 + 16 * 16 * 4)
    assert config.rope.part == 0.25 and config.rotary_size(1) == 8


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen3_next", {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}),
        (
            "qwen3_next",
            {
                "rope_theta": "absent",
                "partial_rotary_factor": "absent",
                "rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": 0.25},
            },
        ),
        ("qwen3_next", {"partial_rotary_factor": "absent", "norm_topk_prob": "absent"}),
        ("qwen3_next", {"torch_dtype": "absent", "dtype": "float32"}),
        ("qwen3_next", {"mlp_only_layers": "absent", "decoder_sparse_step": "absent"}),
        ("qwen3_5_moe", {"layer_types": "absent"}),
        ("qwen3_5_moe", {"full_attention_interval": "absent"}),
        ("qwen3_5_moe", {"rope_parameters": "absent", "rope_scaling": ROPE}),
        ("qwen3_5_moe", {"attn_output_gate": "absent", "mamba_ssm_dtype": "absent"}),
        ("qwen3_5_moe", {"output_gate_type": "swish", "mtp_num_hidden_layers": 0}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value,
)
def test_every_spelling_is_one_model(family: str, changes: dict[str, Any]) -> None:
    found, usual = config_of(family, **changes), config_of(family)
    assert [getattr(found, name) for name in FACTS] == [getattr(usual, name) for name in FACTS]


@pytest.mark.parametrize(
    ("repository", "asked"),
    [
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", ("model_type", "intermediate_size")),
        ("Qwen/Qwen3.6-35B-A3B", ("model_type",)),
    ],
)
def test_defaults_are_transformers(repository: str, asked: tuple[str, ...]) -> None:
    _, raw = PUBLISHED[repository]
    raw = raw.get("text_config", raw)
    least = {key: raw[key] for key in asked}
    theirs, ours = AutoConfig.for_model(**least), read_config(least, FAMILIES)
    published = read_config(raw, FAMILIES)
    assert ours.mixers == published.mixers
    assert ours.mixers[:4] == (*[DeltaNet(16, 32, 128, 4)] * 3, LayerAttention(16, 2, 256))
    rope = theirs.rope_parameters
    assert (ours.rope.theta, ours.rope.part) == (rope["rope_theta"], rope["partial_rotary_factor"])
    for own, name in (
        (ours.hidden_size, "hidden_size"),
        (ours.num_hidden_layers, "num_hidden_layers"),
        (ours.vocab_size, "vocab_size"),
        (ours.num_experts, "num_experts"),
        (ours.num_experts_per_tok, "num_experts_per_tok"),
        (ours.moe_intermediate_size, "moe_intermediate_size"),
        (ours.shared_intermediate_size, "shared_expert_intermediate_size"),
        (ours.max_position_embeddings, "max_position_embeddings"),
        (ours.rms_norm_eps, "rms_norm_eps"),
        (ours.tie_word_embeddings, "tie_word_embeddings"),
        (ours.qkv_bias, "attention_bias"),
    ):
        assert own == getattr(theirs, name), name
    assert ours.norm_topk_prob and published.norm_topk_prob
    layers = [kind == "full_attention" for kind in theirs.layer_types]
    assert [isinstance(own, LayerAttention) for own in ours.mixers] == layers


def test_frequencies_of_a_picture_are_kept_for_those_who_look() -> None:
    published = read_config(PUBLISHED["Qwen/Qwen3.6-35B-A3B"][1], FAMILIES)
    assert published.vision == VisionFacts((11, 11, 10), None)
    assert config_of("qwen3_next").vision is None


@pytest.mark.parametrize(
    ("family", "changes", "message", "hint"),
    [
        (
            "qwen3_next",
            {"layer_types": ["linear_attention", "full_attention", "mamba"]},
            "config.json: layer_types with 'mamba' is not supported",
            "supported: linear_attention, full_attention",
        ),
        (
            "qwen3_next",
            {"full_attention_interval": 4},
            "config.json contradicts itself: full_attention_interval is 4, the model has 3 layers",
            BELONGS,
        ),
        (
            "qwen3_next",
            {"linear_num_value_heads": 5},
            "config.json contradicts itself: 5 value heads do not divide by 2 key heads",
            BELONGS,
        ),
        (
            "qwen3_next",
            {"linear_value_head_dim": 32},
            "config.json: linear_value_head_dim = 32 is not supported",
            "supported: linear_key_head_dim, 16",
        ),
        (
            "qwen3_next",
            {"linear_conv_kernel_dim": 1},
            "config.json: linear_conv_kernel_dim = 1 is not supported",
            "supported: 2 or more",
        ),
        (
            "qwen3_5_moe",
            {"attn_output_gate": False},
            "config.json: attn_output_gate = False is not supported",
            "supported: True, None",
        ),
        (
            "qwen3_5_moe",
            {"output_gate_type": "sigmoid"},
            "config.json: output_gate_type = 'sigmoid' is not supported",
            "supported: 'swish', 'silu', None",
        ),
        (
            "qwen3_5_moe",
            {"mlp_only_layers": [1]},
            "config.json: mlp_only_layers = [1] is not supported",
            "supported: [], None",
        ),
        (
            "qwen3_5_moe",
            {"rope_parameters": ROPE | {"mrope_section": [2, 2, 2]}},
            "config.json contradicts itself: mrope_section sums to 6, half a head is 4",
            BELONGS,
        ),
        (
            "qwen3_5_moe",
            {"rope_parameters": ROPE | {"mrope_interleaved": False}},
            "config.json: rope_parameters.mrope_interleaved = False is not supported",
            "supported: True",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_not_understood(
    family: str, changes: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        config_of(family, **changes)
    assert str(caught.value) == f"{message}\ntry: {hint}"
