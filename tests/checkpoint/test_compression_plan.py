"""Plans that were changed, or are of another model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.edits import refusal
from support.plans import ragged_plan

from tenp_edge.checkpoint.compression_plan import load_plan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource

CheckpointOf = Callable[[str], Path]


def test_plan_of_another_model(checkpoint_of: CheckpointOf) -> None:
    plan = ragged_plan(Checkpoint(checkpoint_of("qwen3_moe")))
    other = Checkpoint(checkpoint_of("olmoe"))
    assert refusal(lambda: ModelSource(other, plan)) == (
        f"the plan belongs to another checkpoint ({plan.fingerprint[:12]}, "
        f"this one is {other.fingerprint[:12]})",
        "plan again for this model",
    )


def test_plan_whose_neurons_were_changed(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    file = tmp_path / "plan.json"
    ragged_plan(checkpoint).save(file)
    assert load_plan(file).digest == ragged_plan(checkpoint).digest
    tensors = load_file(tmp_path / "plan.safetensors")
    tensors["layers.1.experts.0"][0] = 95 - len(tensors["layers.1.experts.0"])
    tensors["layers.1.experts.0"] = tensors["layers.1.experts.0"].sort().values
    unique = len(set(tensors["layers.1.experts.0"].tolist()))
    save_file(tensors, tmp_path / "plan.safetensors")
    expected = (
        f"{file} does not match its plan.safetensors"
        if unique == len(tensors["layers.1.experts.0"])
        else f"{tmp_path / 'plan.safetensors'}: layers.1.experts.0 is not a legal slice"
    )
    assert refusal(lambda: load_plan(file))[0] == expected


@pytest.mark.parametrize("wrong", [[5, 4], [3, 3], [-1, 2], [2, 96]])
def test_plan_with_an_illegal_slice(
    wrong: list[int], checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    ragged_plan(Checkpoint(checkpoint_of("qwen3_moe"))).save(tmp_path / "plan.json")
    tensors = load_file(tmp_path / "plan.safetensors")
    width = len(tensors["layers.0.experts.0"])
    kept = torch.arange(width, dtype=torch.int32)
    kept[-2:] = torch.tensor(wrong)
    tensors["layers.0.experts.0"] = kept
    save_file(tensors, tmp_path / "plan.safetensors")
    assert refusal(lambda: load_plan(tmp_path / "plan.json")) == (
        f"{tmp_path / 'plan.safetensors'}: layers.0.experts.0 is not a legal slice",
        "plan again",
    )


def test_plan_without_its_neurons(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    ragged_plan(Checkpoint(checkpoint_of("qwen3_moe"))).save(tmp_path / "plan.json")
    (tmp_path / "plan.safetensors").unlink()
    assert refusal(lambda: load_plan(tmp_path / "plan.json")) == (
        f"{tmp_path / 'plan.safetensors'} is missing beside plan.json",
        "plan again",
    )


def test_something_else_than_a_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    assert refusal(lambda: load_plan(tmp_path / "plan.json")) == (
        f"{tmp_path / 'plan.json'} is not a tenp-edge plan of version 2 or 3",
        "plan again",
    )
