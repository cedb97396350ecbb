"""The tensors that a GGUF stores in another form: each transform against its inverse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import tiny

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.exporters.gguf.transforms import file_roles, from_file, is_transformed, to_file
from tenp_edge.models import expected_tensors

CENTRED = {"input_norm", "post_attention_norm", "q_norm", "k_norm", "norm"}
DELTA_NET = {f"delta_{name}" for name in ("qkv", "z", "a", "b", "conv", "dt_bias", "decay", "out")}
TRANSFORMED = {
    "mixtral": {"q", "k"},
    "deepseek_v2": {"kv_b"},
    "deepseek_v3": {"kv_b"},
    "glm4_moe_lite": {"kv_b"},
    "ernie4_5_moe": {"router_bias"},
    "qwen3_next": CENTRED | {"delta_qkvz", "delta_conv", "delta_decay"},
    "qwen3_5_moe": CENTRED | DELTA_NET,
    "lfm2_moe": {"conv"},
    "nemotron_h": {"ssm_conv", "ssm_a", "ssm_d", "ssm_norm"},
    "granitemoehybrid": {"ssm_conv", "ssm_a", "ssm_d", "ssm_norm", "shared_gate_up"},
}


@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_what_is_stored_in_another_form_comes_back_bit_for_bit(
    family: str, checkpoint_of: Callable[[str], Path]
) -> None:
    config = Checkpoint(checkpoint_of(family)).config
    generator, changed = torch.Generator().manual_seed(3), set()
    for spec in expected_tensors(config):
        if spec.expert is not None:
            continue
        # To 1 and its logarithm's number and back: exact where a number is not too small or near 1.
        whole = (1024 * torch.randn(spec.shape, generator=generator)).round() / 1024
        whole = -2 - whole.abs() if spec.role == "delta_decay" else whole
        parts = [to_file(config, role, whole) for role in file_roles(spec.role)]
        again, rounded = from_file(config, spec.role, *parts), spec.role == "ssm_a"  # log of exp
        same = torch.allclose(again, whole, atol=1e-6) if rounded else torch.equal(again, whole)
        assert same, spec.name
        assert sum(part.numel() for part in parts) == whole.numel()
        if any(is_transformed(config, role) for role in file_roles(spec.role)):
            changed.add(spec.role)
        else:
            assert parts[0] is whole, spec.name
    assert changed == TRANSFORMED.get(family, set())


def test_halves_of_a_head_become_pairs(checkpoint_of: Callable[[str], Path]) -> None:
    config = Checkpoint(checkpoint_of("mixtral")).config
    rows = config.num_attention_heads * config.head_dim
    found = to_file(config, "q", torch.arange(rows)).tolist()
    half = config.head_dim // 2
    assert found[:4] == [0, half, 1, half + 1]
    assert found[config.head_dim] == config.head_dim


def test_a_latent_matrix_becomes_keys_and_values(checkpoint_of: Callable[[str], Path]) -> None:
    config = Checkpoint(checkpoint_of("deepseek_v2")).config
    assert config.mla is not None
    nope, value, rank = config.mla.qk_nope_head_dim, config.mla.v_head_dim, config.mla.kv_lora_rank
    heads = config.num_attention_heads
    whole = torch.randn(heads * (nope + value), rank)
    keys, values = (to_file(config, role, whole) for role in ("k_b", "v_b"))
    assert keys.shape == (heads, rank, nope) and values.shape == (heads, value, rank)
    second = nope + value  # the first row of the second head
    assert torch.equal(keys[1, :, 0], whole[second])
    assert torch.equal(values[1, 0], whole[second + nope])
