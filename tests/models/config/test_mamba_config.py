"""Nemotron-H and Granite 4.0 H: layers of one block or two, in every spelling; what is refused."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
from published_configs import PUBLISHED
from support import tiny
from transformers import AutoConfig

from tenp_edge.errors import UserError
from tenp_edge.models import FAMILIES, LayerAttention, Mamba2, ModelConfig, read_config, state_bytes
from tenp_edge.models.multipliers import Multipliers

NEMOTRON, GRANITE = "nemotron_h", "granitemoehybrid"
NANO = "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
BELONGS = "the config.json that belongs to the checkpoint"
LETTERS = {"M": "mamba", "*": "attention", "E": "moe"}
NEW_NAMES = {"mamba": "linear_attention", "attention": "full_attention", "moe": "moe"}


def config_of(family: str, **changes: Any) -> ModelConfig:
    raw = tiny.CONFIGS[family] | changes
    return read_config({key: value for key, value in raw.items() if value != "absent"}, FAMILIES)


def test_a_layer_is_one_block_or_two() -> None:
    mamba, attends = Mamba2(8, 16, 16, 2, 4), LayerAttention(heads=4, kv_heads=2, head_dim=32)
    config = config_of(NEMOTRON)
    assert config.mixers == (mamba, None, attends, mamba, None)
    assert config.moe_layers == (1, 4) and config.mlp_layers == frozenset()
    assert (mamba.inner, mamba.channels) == (128, 192)
    assert mamba.state_shapes == {"conv": (3, 192), "ssm": (16, 16, 8)}
    assert state_bytes(config.mixers) == 2 * 4 * (3 * 192 + 16 * 16 * 8)
    config = config_of(GRANITE)
    mamba, attends = Mamba2(8, 16, 16, 1, 4), LayerAttention(heads=4, kv_heads=2, head_dim=16)
    assert config.mixers == (mamba, attends, mamba) and config.moe_layers == (0, 1, 2)
    assert config.multipliers == Multipliers(0.5, 0.125, 0.5, 1 / 6)


def test_published_sizes() -> None:
    config = read_config(PUBLISHED[NANO][1], FAMILIES)
    kinds = [type(mixer) for mixer in config.mixers]
    assert (kinds.count(Mamba2), len(config.moe_layers), len(config.attention_layers)) == (
        23,
        23,
        6,
    )
    assert config.mixers[0] == Mamba2(64, 64, 128, 8, 4) and config.stored_prefix == "backbone."
    config = read_config(PUBLISHED["ibm-granite/granite-4.0-h-tiny"][1], FAMILIES)
    assert config.mixers[0] == Mamba2(48, 64, 128, 1, 4) and len(config.attention_layers) == 4
    assert config.layer_attention(5).head_dim == 128


def listed(names: dict[str, str]) -> list[str]:
    pattern = tiny.CONFIGS[NEMOTRON]["hybrid_override_pattern"]
    return [names[LETTERS[letter]] for letter in pattern]


SPELLINGS: list[tuple[str, dict[str, Any]]] = [
    (NEMOTRON, {"num_hidden_layers": "absent"}),
    (NEMOTRON, {"layer_norm_epsilon": "absent", "rms_norm_eps": 1e-5}),
    (NEMOTRON, {"torch_dtype": "absent", "dtype": "float32"}),
    (NEMOTRON, {"time_step_limit": [0.0, inf], "moe_latent_size": None}),
    (NEMOTRON, {"partial_rotary_factor": "absent", "rope_theta": "absent"}),
    # As 3.5-Lightning is published, and as transformers 5 writes it.
    (
        NEMOTRON,
        {
            "hybrid_override_pattern": "absent",
            "layers_block_type": listed({name: name for name in NEW_NAMES}),
            "mtp_layers_block_type": ["attention", "moe"],
        },
    ),
    (
        NEMOTRON,
        {
            "hybrid_override_pattern": "absent",
            "num_hidden_layers": "absent",
            "layers_block_type": listed(NEW_NAMES),
            "mtp_layers_block_type": ["full_attention", "moe"],
        },
    ),
    (GRANITE, {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}),
    (
        GRANITE,
        {"layer_types": "absent", "layers_block_type": ["mamba", "attention", "mamba"]},
    ),
    (GRANITE, {"mamba_d_head": "auto"}),
    (GRANITE, {"mamba_d_head": "absent", "mamba_expand": "absent"}),
    (GRANITE, {"time_step_limit": [0.0, {"__float__": "Infinity"}]}),
    (GRANITE, {"position_embedding_type": None, "normalization_function": "absent"}),
    (GRANITE, {"rope_theta": "absent", "rope_scaling": "absent"}),
]


@pytest.mark.parametrize(("family", "changes"), SPELLINGS, ids=lambda value: str(value)[:60])
def test_every_spelling_is_one_model(family: str, changes: dict[str, Any]) -> None:
    def facts(config: ModelConfig) -> list[Any]:
        names = ("mixers", "mlp_layers", "moe_layers", "num_hidden_layers", "rms_norm_eps")
        more = ("dtype", "norm_topk_prob", "shared_intermediate_size", "multipliers", "n_group")
        return [getattr(config, name) for name in (*names, *more)]

    assert facts(config_of(family, **changes)) == facts(config_of(family))


def test_defaults_are_transformers() -> None:
    """Of every key that a config may leave out."""
    for family, least in (
        (NEMOTRON, {"layers_block_type": ["mamba", "moe", "attention", "moe"]}),
        (GRANITE, {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]}),
    ):
        raw = {"model_type": family} | least
        theirs, ours = AutoConfig.for_model(family, **least), read_config(raw, FAMILIES)
        mamba = ours.mixers[0]
        assert isinstance(mamba, Mamba2)
        nemotron = family == NEMOTRON
        for own, name in (
            (ours.hidden_size, "hidden_size"),
            (ours.vocab_size, "vocab_size"),
            (ours.num_experts, "num_local_experts"),
            (ours.num_experts_per_tok, "num_experts_per_tok"),
            (ours.num_attention_heads, "num_attention_heads"),
            (ours.num_key_value_heads, "num_key_value_heads"),
            (ours.max_position_embeddings, "max_position_embeddings"),
            (ours.tie_word_embeddings, "tie_word_embeddings"),
            (ours.rms_norm_eps, "layer_norm_epsilon" if nemotron else "rms_norm_eps"),
            (
                ours.moe_intermediate_size,
                "moe_intermediate_size" if nemotron else "intermediate_size",
            ),
            (
                ours.shared_intermediate_size,
                "moe_shared_expert_intermediate_size" if nemotron else "shared_intermediate_size",
            ),
            (mamba.heads, "mamba_num_heads" if nemotron else "mamba_n_heads"),
            (mamba.head_dim, "mamba_head_dim" if nemotron else "mamba_d_head"),
            (mamba.state, "ssm_state_size" if nemotron else "mamba_d_state"),
            (mamba.groups, "n_groups" if nemotron else "mamba_n_groups"),
            (mamba.taps, "conv_kernel" if nemotron else "mamba_d_conv"),
        ):
            assert own == getattr(theirs, name), name
        if not nemotron:
            assert ours.multipliers == Multipliers(1.0, theirs.attention_multiplier, 1.0, 1.0)


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (
        NEMOTRON,
        {"moe_latent_size": 32},
        "config.json: moe_latent_size = 32 is not supported",
        "supported: None",
    ),
    (
        NEMOTRON,
        {"hybrid_override_pattern": "ME*M-"},
        "config.json: layer_types with '-' is not supported",
        "supported: mamba, linear_attention, attention, full_attention, moe",
    ),
    (
        NEMOTRON,
        {"hybrid_override_pattern": "ME*E"},
        "config.json: layer_types is ['mamba', 'moe', 'attention', 'moe'], not a list of 5 layers",
        BELONGS,
    ),
    (
        NEMOTRON,
        {"hybrid_override_pattern": ["M", "E"]},
        "config.json: hybrid_override_pattern is ['M', 'E'], not a string of letters",
        BELONGS,
    ),
    (
        NEMOTRON,
        {"layers_block_type": ["moe"] * 5},
        "config.json contradicts itself: hybrid_override_pattern is ME*ME, layers_block_type says "
        "otherwise",
        BELONGS,
    ),
    (
        NEMOTRON,
        {"hybrid_override_pattern": "M*M*M"},
        "config.json leaves no layer with routed experts",
        BELONGS,
    ),
    (
        NEMOTRON,
        {"n_groups": 3},
        "config.json contradicts itself: 8 Mamba heads do not divide into 3 groups",
        BELONGS,
    ),
    (
        NEMOTRON,
        {"conv_kernel": 1},
        "config.json: conv_kernel = 1 is not supported",
        "supported: 2 or more",
    ),
    (
        NEMOTRON,
        {"time_step_min": 0.1},
        "config.json: time_step_min = 0.1 is not supported",
        "supported: 0.001, None",
    ),
    (
        GRANITE,
        {"position_embedding_type": "rope"},
        "config.json: position_embedding_type = 'rope' is not supported",
        "supported: 'nope', None",
    ),
    (
        GRANITE,
        {"mamba_n_heads": 4},
        "config.json contradicts itself: 4 Mamba heads of 16 are not mamba_expand = 2 times 64",
        BELONGS,
    ),
    (
        GRANITE,
        {"num_local_experts": 0, "num_experts_per_tok": 0},
        "'granitemoehybrid' is a dense model: it has no routed experts to prune",
        "a Mixture-of-Experts checkpoint of one of: " + ", ".join(sorted(FAMILIES)),
    ),
    (
        GRANITE,
        {"residual_multiplier": 0},
        "config.json: residual_multiplier is 0, not a number above zero",
        BELONGS,
    ),
]


@pytest.mark.parametrize(
    ("family", "changes", "message", "hint"), REFUSED, ids=lambda value: str(value)[:40]
)
def test_what_is_not_understood(
    family: str, changes: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(UserError) as caught:
        config_of(family, **changes)
    assert str(caught.value) == f"{message}\ntry: {hint}"
