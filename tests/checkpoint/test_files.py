"""A checkpoint is read by header, checked whole, and equal to what transformers reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import tiny
from support.edits import edit_tensors
from support.neuron_maths import weights_in
from support.quantised import LAYOUTS, quantise
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


def test_gpt_oss_as_published_is_its_bf16_copy(tmp_path: Path) -> None:
    """MXFP4 has the rows of gate and up in turns, as they come out; bf16 copies are transposed."""
    copy, published = (
        tiny.make(tmp_path / name, "gpt_oss", torch_dtype="bfloat16")
        for name in ("copy", "published")
    )

    def turned(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if name.endswith(("gate_up_proj", "down_proj")):
                tensors[name] = tensors[name].mT.contiguous()

    edit_tensors(published, turned)
    decoded = quantise(published, LAYOUTS["mxfp4 gpt-oss"])
    edit_tensors(
        copy,
        lambda tensors: tensors.update(
            {name: matrix.mT.bfloat16().contiguous() for name, matrix in decoded.items()}
        ),
    )
    one, other = Checkpoint(copy), Checkpoint(published)
    for layer in one.config.moe_layers:
        for expert in range(one.config.num_experts):
            ours, theirs = one.expert(layer, expert), other.expert(layer, expert)
            for part in one.config.expert_parts:
                assert torch.equal(getattr(ours, part), getattr(theirs, part)), part
