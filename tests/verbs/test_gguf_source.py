"""The whole road from a GGUF: the same commands, the same plan as of the checkpoint's values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import refused, run
from support.gguf_sources import dequantised, split, tensors_of, write_gguf

from tenp_edge.checkpoint.compression_plan import load_plan
from tenp_edge.runtime.opening import RunOptions, open_model

QUICK = ("--samples", "2", "--seq-len", "64", "--set", "eval-samples=1", "--set", "eval-seq-len=64")


@pytest.fixture(scope="module")
def source(checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(checkpoint_of("qwen3_moe"), tmp_path_factory.mktemp("gguf") / "m-Q8_0.gguf")


@pytest.fixture(scope="module")
def compressed(source: Path) -> Path:
    out = source.parent / "out"
    command = ("compress", source, "--keep", "0.6", "--layout", "merged", *QUICK, "-o", out)
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert "note: no pruned checkpoint is written: the model is a file, not a checkpoint\n" in (
        done.stderr
    )
    return out


def test_a_run_leaves_all_but_a_checkpoint(compressed: Path, source: Path) -> None:
    names = {file.name for file in compressed.iterdir()}
    assert {"model.gguf", "plan.json", "validation.json", "calibration"} <= names
    assert "checkpoint" not in names
    plan = load_plan(compressed / "plan.json")
    assert plan.files == {"model.gguf": (compressed / "model.gguf").stat().st_size}
    report = json.loads((compressed / "validation.json").read_text())
    assert report["tokenizer_agrees"] is True
    assert [loss["stage"] for loss in report["losses"]] == ["pruning", "quantisation", "runtime"]
    again = ("compress", source, "--keep", "0.6", "--layout", "merged", *QUICK, "-o", compressed)
    assert f"nothing to do: {compressed} is complete" in run(*again).stderr
    with open_model(compressed / "model.gguf", RunOptions(context=64, threads=1)) as model:
        assert model.logits([1, 2, 3]).shape[0]


def test_it_is_the_run_of_the_same_values(
    compressed: Path, source: Path, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """Calibrated, planned, mended and written of a float32 checkpoint: byte for byte."""
    values = dequantised(source, checkpoint_of("qwen3_moe"), tmp_path / "values")
    out = tmp_path / "out"
    command = ("compress", values, "--keep", "0.6", "--layout", "merged", *QUICK, "-o", out)
    assert run(*command, "--skip-checkpoint", "--no-validate").returncode == 0
    ours, theirs = load_plan(compressed / "plan.json"), load_plan(out / "plan.json")
    assert ours.widths == theirs.widths
    assert tensors_of(compressed / "model.gguf") == tensors_of(out / "model.gguf")


def test_the_verbs_one_by_one(source: Path, tmp_path: Path) -> None:
    work, plan, file = tmp_path / "work", tmp_path / "plan.json", tmp_path / "model.gguf"
    calibration = ("--samples", "2", "--seq-len", "64")
    for command in (
        ("inspect", source),
        ("calibrate", source, "-o", work, *calibration),
        ("plan", source, "--keep", "0.6", "--calibration", work, "-o", plan),
        ("export", source, "--plan", plan, "--calibration", work, "--quant", "Q4_K_M", "-o", file),
        ("validate", source, file, "--plan", plan, *calibration),
    ):
        done = run(*command)
        assert done.returncode == 0, done.stderr
    inspected = json.loads(run("inspect", source, "--json").stdout)
    assert inspected["family"] == "qwen3_moe" and list(inspected["quantised"]) == ["Q8_0"]


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5_moe", "nemotron_h", "granitemoehybrid"])
def test_every_verb_of_a_split_file_whose_layers_carry_a_state(
    family: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """`compress` calibrates, plans, mends, writes and validates."""
    first, out = split(write_gguf(checkpoint_of(family), tmp_path / "m.gguf"), 2), tmp_path / "out"
    inspected = run("inspect", first, "--json")
    assert json.loads(inspected.stdout)["family"] == family
    command = ("compress", first, "--keep", "0.6", "--layout", "merged", "-o", out)
    done = run(*command, *QUICK, "--samples", "1", "--seq-len", "32")
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "validation.json").read_text())
    assert report["tokenizer_agrees"] is True
    (runtime,) = (loss for loss in report["losses"] if loss["stage"] == "runtime")
    assert abs(runtime["added_kl"]) < 0.05


def test_a_pruned_file_is_not_pruned_again(compressed: Path, tmp_path: Path) -> None:
    file = compressed / "model.gguf"
    assert refused("plan", file, "--keep", "0.5", "-o", tmp_path / "plan.json") == (
        f"error: {file} is pruned already\ntry:   the original checkpoint, to plan again from\n"
    )
