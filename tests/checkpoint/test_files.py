"""A checkpoint is read by header, checked whole, and equal to what transformers reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import tiny
from transformers import AutoModelForCausalLM

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_experts_equal_transformers(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    model = AutoModelForCausalLM.from_pretrained(checkpoint.path)
    for layer in checkpoint.config.moe_layers:
        experts = tiny.experts_of(model, layer)
        for expert in range(checkpoint.config.num_experts):
            ours = checkpoint.expert(layer, expert)
            assert torch.equal(torch.cat([ours.gate, ours.up]), experts.gate_up_proj[expert])
            assert torch.equal(ours.down, experts.down_proj[expert])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_fused_and_per_expert_files_read_the_same(
    family: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    fused = Checkpoint(tiny.make(tmp_path / "fused", family, fused=True))
    plain = Checkpoint(checkpoint_of(family))
    for name in ModelSource(plain).tensors:
        assert torch.equal(ModelSource(fused).read(name), ModelSource(plain).read(name))
