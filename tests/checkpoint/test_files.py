"""A checkpoint is read by header, checked whole, and equal to what transformers reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import tiny
from support.neuron_maths import weights_in
from support.references import reference_model

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_experts_equal_transformers(family: str, checkpoint_of: Callable[[str], Path]) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    model = reference_model(checkpoint.path)
    for layer in checkpoint.config.moe_layers:
        for expert in range(checkpoint.config.num_experts):
            ours = checkpoint.expert(layer, expert)
            theirs = weights_in(model, checkpoint.config.family, layer, expert)
            for part in checkpoint.config.expert_parts:
                assert torch.equal(getattr(ours, part), getattr(theirs, part))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_fused_and_per_expert_files_read_the_same(
    family: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    fused = Checkpoint(tiny.make(tmp_path / "fused", family, fused=True))
    plain = Checkpoint(checkpoint_of(family))
    for name in ModelSource(plain).tensors:
        assert torch.equal(ModelSource(fused).read(name), ModelSource(plain).read(name))
