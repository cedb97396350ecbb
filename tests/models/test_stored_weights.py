"""Stacked experts are found and read in every way that they are published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import tiny
from support.edits import refusal
from support.plans import ragged_plan
from support.stored_layouts import rewritten, stack_experts

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.models import FAMILIES
from tenp_edge.models.inspection import inspect_model

CheckpointOf = Callable[[str], Path]
WAYS = {
    "transformers 5": {},
    "transposed": {"transposed": True},
    "with .weight": {"suffix": ".weight"},
    "transposed, with .weight": {"transposed": True, "suffix": ".weight"},
}


def same_weights(one: Checkpoint, other: Checkpoint) -> None:
    """Every weight of the model is the same tensor, bit for bit."""
    assert list(ModelSource(one).tensors) == list(ModelSource(other).tensors)
    for name in ModelSource(one).tensors:
        assert torch.equal(ModelSource(one).read(name), ModelSource(other).read(name)), name


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
@pytest.mark.parametrize("way", WAYS)
def test_stacked_experts_read_as_single_ones(
    way: str, family: str, checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    plain = checkpoint_of(family)
    stacked = stack_experts(Path(shutil.copytree(plain, tmp_path / "model")), **WAYS[way])
    same_weights(Checkpoint(stacked), Checkpoint(plain))
    summary, before = inspect_model(stacked), inspect_model(plain)
    assert summary.fused_experts and summary.parts == before.parts and not summary.left_out


@pytest.mark.parametrize("width", [32, 64], ids=["2 widths = hidden", "width = hidden"])
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_one_square_matrix_does_not_hide_the_orientation(
    width: int, transposed: bool, tmp_path: Path
) -> None:
    """Hidden size 64: where gate_up_proj or down_proj is square, the other one tells."""
    plain = tiny.make(tmp_path / "plain", "qwen3_moe", moe_intermediate_size=width)
    stacked = Path(shutil.copytree(plain, tmp_path / "stacked"))
    stack_experts(stacked, transposed=transposed)
    same_weights(Checkpoint(stacked), Checkpoint(plain))


def test_tensors_of_two_orientations_are_refused(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(checkpoint_of("qwen3_moe"), tmp_path / "model"))
    name = "model.layers.0.mlp.experts.down_proj"
    stack_experts(model)
    rewritten(model, lambda tensors: tensors | {name: tensors[name].mT})
    assert refusal(lambda: Checkpoint(model)) == (
        f"{name} has shape [8, 96, 64], config.json implies [8, 64, 96]",
        "check that config.json belongs to this checkpoint",
    )


@pytest.fixture
def biased(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A model of a family whose experts have biases and whose stacked gate and up interleave."""
    family = replace(FAMILIES["qwen3_moe"], expert_bias=True, gate_up_interleaved=True)
    monkeypatch.setitem(FAMILIES, "qwen3_moe", family)
    return tiny.make(tmp_path / "plain", "qwen3_moe")


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_interleaved_experts_with_biases(transposed: bool, biased: Path, tmp_path: Path) -> None:
    stacked = Path(shutil.copytree(biased, tmp_path / "stacked"))
    stack_experts(stacked, transposed=transposed, interleaved=True)
    same_weights(Checkpoint(stacked), Checkpoint(biased))
    assert inspect_model(stacked).parts == inspect_model(biased).parts


def test_biases_of_gate_and_up_are_cut_with_their_rows(biased: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint(stack_experts(biased, interleaved=True))
    plan = ragged_plan(checkpoint)
    write_checkpoint(ModelSource(checkpoint, plan), tmp_path / "pruned")
    pruned = Checkpoint(tmp_path / "pruned")
    for layer in checkpoint.config.moe_layers:
        for expert in range(checkpoint.config.num_experts):
            whole, cut = checkpoint.expert(layer, expert), pruned.expert(layer, expert)
            width = cut.width
            kept = plan.neurons(layer, expert) if width < 96 else torch.arange(96)
            for name in ("gate_bias", "up_bias"):
                assert torch.equal(getattr(cut, name), getattr(whole, name)[kept])
            assert torch.equal(cut.down_bias, whole.down_bias)
