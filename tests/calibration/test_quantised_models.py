"""A quantised checkpoint is calibrated and compressed as the one that holds its decoded numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from support.calibrating import run, two_domains
from support.command import run as command
from support.edits import edit_tensors
from support.quantised import LAYOUTS, quantise
from support.stored_layouts import stack_experts

from tenp_edge import load_pruned
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource

QUICK = ("--samples", "2", "--seq-len", "64", "--set", "eval-samples=1", "--set", "eval-seq-len=64")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bf16 model of two layers."""
    few = {"num_hidden_layers": 2, "num_experts": 4, "torch_dtype": "bfloat16"}
    return tiny.make(tmp_path_factory.mktemp("bf16"), "qwen3_moe", **few)


def in_layout(plain: Path, name: str, directory: Path) -> tuple[Path, Path]:
    """(the quantised model, a bf16 one of the same numbers)."""
    quantised, decoded = (
        Path(shutil.copytree(plain, directory / kind)) for kind in ("quantised", "decoded")
    )
    for model in (quantised, decoded) if LAYOUTS[name].stacked else ():
        stack_experts(model)
    expected = quantise(quantised, LAYOUTS[name])
    edit_tensors(
        decoded,
        lambda tensors: tensors.update(
            {name: matrix.bfloat16().contiguous() for name, matrix in expected.items()}
        ),
    )
    return quantised, decoded


@pytest.mark.parametrize("name", ["fp8 blocks", "mxfp4 gpt-oss", "int4 with zero points"])
def test_statistics_are_those_of_the_decoded_model(name: str, plain: Path, tmp_path: Path) -> None:
    for model in in_layout(plain, name, tmp_path):
        run(model, tmp_path / f"{model.name}-statistics", two_domains())
    one, other = (
        load_file(tmp_path / f"{kind}-statistics" / "statistics.safetensors")
        for kind in ("quantised", "decoded")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_compress_from_fp8(plain: Path, tmp_path: Path) -> None:
    """Inspected, calibrated, planned, cut, exported and validated; loads in transformers."""
    model, _ = in_layout(plain, "fp8 blocks", tmp_path)
    shown = command("inspect", model)
    assert "quantised: FP8, scales of 32 x 32 blocks (" in shown.stdout
    done = command("compress", model, "--keep", "0.6", *QUICK, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "validation.json").read_text())
    assert 0 < report["overall"]["mean_kl"] < 1
    loaded = load_pruned(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    assert loaded.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3).shape[1] > 3


@pytest.mark.parametrize("name", ["int4", "mxfp4 gpt-oss"])
def test_large_layers_are_decoded_expert_by_expert(
    name: str, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a layer is too large to be held decoded, with the same numbers as where it is not."""
    model, _ = in_layout(plain, name, tmp_path)
    run(model, tmp_path / "held", two_domains())
    monkeypatch.setattr("tenp_edge.checkpoint.source.HELD_DECODED_BYTES", 0)
    run(model, tmp_path / "read", two_domains())
    assert ModelSource(Checkpoint(model)).stored_dtype is None
    assert ModelSource(Checkpoint(plain)).stored_dtype == torch.bfloat16
    one, other = (
        load_file(tmp_path / kind / "statistics.safetensors") for kind in ("held", "read")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
