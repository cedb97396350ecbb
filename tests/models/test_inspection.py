"""inspect: the numbers of a model from config.json and headers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from random_checkpoint import SHAPES, write_holes
from safetensors.torch import load_file, save_file
from support import tiny
from support.plans import ragged_plan
from support.references import reference_model

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.models.inspection import PARTS, inspect_model

CheckpointOf = Callable[[str], Path]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_counts_equal_transformers(family: str, checkpoint_of: CheckpointOf) -> None:
    summary = inspect_model(checkpoint_of(family))
    model = reference_model(checkpoint_of(family))
    kept = model.state_dict()
    buffers = sum(b.numel() for name, b in model.named_buffers() if name in kept)
    assert summary.parameters == buffers + sum(p.numel() for p in model.parameters())
    assert set(summary.parts) <= set(PARTS)
    row = Checkpoint(checkpoint_of(family)).config.family
    biases = 2 * summary.width + summary.hidden_size if row.expert_bias else 0
    matrices = len(row.matrices) * summary.width * summary.hidden_size
    assert summary.parts["routed experts"].parameters == (
        summary.moe_layers * summary.experts * (matrices + biases)
    )
    file = checkpoint_of(family) / "model.safetensors"
    header = int.from_bytes(file.read_bytes()[:8], "little") + 8
    assert summary.bytes == file.stat().st_size - header
    assert not summary.pruned and summary.keep_ratio == 1.0
    assert summary.fused_experts == (family in tiny.STACKED)


def test_active_parameters_of_a_known_model(tmp_path: Path) -> None:
    """Qwen3-30B-A3B: 30.5 B parameters, 3.3 B activated when both embedding tables count."""
    summary = inspect_model(write_holes(tmp_path, SHAPES["qwen3-30b-a3b"]))
    assert round(summary.parameters / 1e9, 1) == 30.5
    assert round(summary.active_parameters / 1e9, 1) == 3.0  # one embedding table is a row only
    assert (summary.files, summary.dtypes) == (16, {"BF16": 18867})


def test_60_gb_in_under_two_seconds(tmp_path: Path) -> None:
    """The whole command, Python's start included; CPU time, since a test machine may be busy."""
    path = write_holes(tmp_path, SHAPES["qwen3-30b-a3b"])
    code = (
        f"import sys, time; sys.argv = ['tenp-edge', 'inspect', {str(path)!r}, '--json']\n"
        "import atexit; atexit.register(lambda: print(time.process_time(), *sys.modules, "
        "file=sys.stderr))\n"
        "from tenp_edge.cli.main import main; main()"
    )
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert json.loads(found.stdout)["bytes"] == 61_064_245_248
    seconds, *modules = found.stderr.decode().split()
    assert float(seconds) < 2
    # Of the verbs and of the families, only what was asked for is loaded.
    assert {"tenp_edge.cli.commands.inspect", "tenp_edge.models.families.qwen3_moe"} <= {*modules}
    assert not {
        "tenp_edge.cli.commands.prune",
        "tenp_edge.cli.commands.run",
        "tenp_edge.models.families.olmoe",
    } & {*modules}


def test_fused_and_plain_count_the_same(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    fused = inspect_model(tiny.make(tmp_path, "qwen2_moe", fused=True))
    plain = inspect_model(checkpoint_of("qwen2_moe"))
    assert fused.fused_experts and fused.parts == plain.parts


def test_pruned_model(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("mixtral"))
    write_checkpoint(ModelSource(checkpoint, ragged_plan(checkpoint)), tmp_path / "checkpoint")
    summary, before = inspect_model(tmp_path), inspect_model(checkpoint.path)
    assert summary.pruned and summary.method == "given"
    assert (summary.width_min, summary.width_max, summary.width) == (42, 128, 128)
    routed, full = summary.parts["routed experts"], before.parts["routed experts"]
    assert routed.parameters / full.parameters == pytest.approx(summary.keep_ratio)
    assert summary.parts["attention"] == before.parts["attention"]
    assert json.loads(json.dumps(summary.to_json()))["bytes"] == summary.bytes


def test_left_out_tensors_are_counted_apart(tmp_path: Path) -> None:
    path = tiny.make(tmp_path, "deepseek_v3")
    tensors = load_file(path / "model.safetensors")
    before = inspect_model(path)
    tensors["model.layers.3.enorm.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, path / "model.safetensors")
    after = inspect_model(path)
    assert after.left_out == ("model.layers.3.enorm.weight",) and after.left_out_bytes == 256
    assert after.bytes == before.bytes
