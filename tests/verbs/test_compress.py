"""compress as a whole: what it leaves, that it fits, and that a kill changes nothing."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support.command import refused, run
from support.plans import whole_plan

from tenp_edge import load_pruned
from tenp_edge.checkpoint.compression_plan import load_plan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.cli.report.closing import closing
from tenp_edge.errors import UserError
from tenp_edge.progress import QUIET
from tenp_edge.runtime.memory.footprint import MemoryRun
from tenp_edge.verbs import options as take
from tenp_edge.verbs.compress import run_compress
from tenp_edge.verbs.compress_request import CompressRequest
from tenp_edge.verbs.validate import as_planned, run_validate

QUICK = ("--samples", "2", "--seq-len", "64", "--set", "eval-samples=1", "--set", "eval-seq-len=64")
OUTPUTS = {
    "README.md",
    "calibration",
    "checkpoint",
    "environment.json",
    "manifest.json",
    "mended",
    "model.gguf",
    "plan.json",
    "plan.safetensors",
    "recipe.toml",
    "report.html",
    "validation.json",
}

TIMED = (
    *("README.md", "validation.json", "manifest.json", "mended.json", "refine.json"),
    *("recipe.toml", "environment.json", "report.html"),
)


def digests(directory: Path) -> dict[str, str]:
    """Hash of every file, except what names the run's own times and paths."""
    return {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.name not in TIMED
    }


@pytest.fixture(scope="module")
def compressed(
    checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An undisturbed run on the tiny qwen3_moe."""
    out = tmp_path_factory.mktemp("compressed") / "out"
    done = run("compress", checkpoint_of("qwen3_moe"), "--keep", "0.6", *QUICK, "-o", out)
    assert done.returncode == 0, done.stderr
    return out


def test_output_is_what_the_manual_says(compressed: Path) -> None:
    assert {file.name for file in compressed.iterdir()} == OUTPUTS
    configs = {file.parent.name for file in compressed.rglob("config.json")}
    assert configs == {"checkpoint"}
    assert len(list(compressed.rglob("*.gguf"))) == 1


def test_planned_bytes_are_the_written_bytes(compressed: Path) -> None:
    plan = load_plan(compressed / "plan.json")
    assert set(plan.files) == {"model.gguf", "checkpoint/model.safetensors"}
    for name, size in plan.files.items():
        assert (compressed / name).stat().st_size == size


def test_plan_names_the_retained_neurons(compressed: Path) -> None:
    plan = load_plan(compressed / "plan.json")
    with safe_open(compressed / "plan.safetensors", "pt") as stored:
        assert set(stored.keys()) == {f"layers.{x}.experts.{e}" for x in range(3) for e in range(8)}
        for layer, row in plan.widths.items():
            for expert, width in enumerate(row):
                assert stored.get_tensor(f"layers.{layer}.experts.{expert}").numel() == width


def test_validation_is_recorded(compressed: Path) -> None:
    report = json.loads((compressed / "validation.json").read_text())
    assert report["overall"]["mean_kl"] > 0
    assert report["measured_peak_rss"] > 0 and report["predicted_peak_rss"] > 0


def test_validate_keeps_to_the_number_that_was_planned(
    compressed: Path, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """The process is measured in whole MiB, so that the same run is a MiB more on another day;
    what the machine says stands where it is further off, and of another run."""
    made = shutil.copytree(compressed, tmp_path / "made")
    plan = json.loads((made / "plan.json").read_text())
    total = plan["memory"]["total_bytes"]
    asked = MemoryRun(
        *(plan["memory"][name] for name in ("context", "ubatch", "kv_type")), threads=2
    )

    def say(said: int) -> int:
        plan["memory"]["total_bytes"] = said
        (made / "plan.json").write_text(json.dumps(plan))
        return said

    near = say(total - 2**19)  # no whole step
    options = take.ValidationOptions(samples=1, seq_len=64, split=False)
    report = run_validate(checkpoint_of("qwen3_moe"), made, options)
    assert report.predicted_peak_rss == near
    assert as_planned(made / "model.gguf", replace(asked, context=64)) is None
    assert as_planned(compressed / "checkpoint" / "model.safetensors", asked) is None
    far = say(total + 2**25)
    assert as_planned(made / "model.gguf", asked) != far


@pytest.mark.parametrize("where", ["", "checkpoint"])
def test_load_pruned_takes_the_output(compressed: Path, where: str) -> None:
    model = load_pruned(compressed / where)
    experts = model.model.layers[0].mlp.experts
    widths = tuple(experts[number].gate_proj.weight.shape[0] for number in range(len(experts)))
    assert widths == load_plan(compressed / "plan.json").widths[0]


def test_the_output_directory_is_enough(
    compressed: Path, checkpoint_of: Callable[[str], Path]
) -> None:
    done = run("run", compressed, "-p", "def", "-n", 2, "--context", 64)
    assert done.returncode == 0 and "model.gguf, " in done.stderr
    small = ("--samples", 1, "--seq-len", 64, "--context", 64, "--no-split", "--json")
    done = run("validate", checkpoint_of("qwen3_moe"), compressed, *small)
    assert json.loads(done.stdout)["candidate"] == str(compressed / "model.gguf")
    assert f"validating {compressed / 'model.gguf'}" in done.stderr


def test_the_same_command_again_changes_nothing(
    compressed: Path, checkpoint_of: Callable[[str], Path]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in compressed.rglob("*.safetensors")}
    model = checkpoint_of("qwen3_moe")
    done = run("compress", model, "--keep", "0.6", *QUICK, "-o", compressed)
    assert done.returncode == 0, done.stderr
    report = json.loads((compressed / "validation.json").read_text())
    plan = load_plan(compressed / "plan.json")
    assert done.stdout == f"{closing(model, compressed, plan, report)}\n"
    assert before == {file: file.stat().st_mtime_ns for file in compressed.rglob("*.safetensors")}


def test_a_twin_cannot_hold_constants_which_is_said_before_the_file_is_made(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    plan = replace(whole_plan(checkpoint), means={(0, 1): torch.zeros(96)})
    options = take.CompressOptions(
        plan=take.PlanOptions(keep=0.5), validation=take.ValidationOptions(twin=True)
    )
    request = CompressRequest(checkpoint, tmp_path, options, QUIET)
    with pytest.raises(UserError) as error:
        request.require_judge(plan)
    assert error.value.message == (
        "an expert of the plan gives a constant, which llama.cpp cannot hold"
    )
    assert error.value.hint == "leave --twin out"
    request.require_judge(whole_plan(checkpoint))


def test_a_finished_run_is_not_overwritten(
    compressed: Path, checkpoint_of: Callable[[str], Path]
) -> None:
    other = ("compress", checkpoint_of("qwen3_moe"), "--keep", "0.8", *QUICK, "-o", compressed)
    assert refused(*other) == (
        f"error: {compressed} holds a finished run with other settings\n"
        f"try:   another -o with --calibration {compressed / 'calibration'} "
        "(it is not made again), or --force to overwrite it\n"
    )


@pytest.mark.parametrize("method", ["free", "drop", "enp"])
def test_every_method_goes_the_whole_road(
    method: str, checkpoint_of: Callable[[str], Path], compressed: Path, tmp_path: Path
) -> None:
    """On the statistics that are there: another plan needs no second calibration."""
    options = take.CompressOptions(
        plan=take.PlanOptions(keep=0.6, method=method),
        statistics=compressed / "calibration",
        skip_checkpoint=True,
        no_validate=True,
    )
    result = run_compress(checkpoint_of("qwen3_moe"), tmp_path / "out", options)
    assert result.plan.record.method == method
    assert result.plan.keep_ratio <= 0.625
    size = (tmp_path / "out" / "model.gguf").stat().st_size
    assert dict(result.plan.files) == {"model.gguf": size}


# Runs compress again and again on one output, each in a fork of a process that has the modules
# loaded and has computed nothing. Run n kills itself (-9) at the n-th of the given steps of
# progress; 0 is a whole run. Prints how each ended.
DRIVER = """
import json, os, signal, sys, traceback
from contextlib import contextmanager
from pathlib import Path
from tenp_edge.verbs import options as take
from tenp_edge.verbs.compress import run_compress

class Killer:
    def __init__(self, kill_at):
        self.left = kill_at
    def note(self, text): pass
    @contextmanager
    def task(self, title, total, unit):
        yield self
    def advance(self, amount=1):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

options = take.CompressOptions(
    calibration=take.CalibrationOptions(samples=2, seq_len=64),
    plan=take.PlanOptions(keep=0.6),
    validation=take.ValidationOptions(samples=1, seq_len=64),
)

def run(kill_at):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        run_compress(Path(sys.argv[1]), Path(sys.argv[2]), options, Killer(kill_at))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

print(json.dumps([run(int(step)) for step in sys.argv[3:]]))
"""


def killed_at(model: Path, out: Path, *steps: int) -> tuple[list[int], str]:
    """How the runs ended, and what they said."""
    command = [sys.executable, "-c", DRIVER, *map(str, (model, out, *steps))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout), done.stderr


def test_killed_at_every_stage_the_result_is_the_same(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    """As a whole run of the same kind of process: in this one other tests have set torch's threads,
    and sums may be rounded in another order."""
    model, out, whole = checkpoint_of("qwen3_moe"), tmp_path / "out", tmp_path / "whole"
    ended, said = killed_at(model, out, 2, 5, 20, 60, 0)
    assert ended == [-9, -9, -9, -9, 0], said
    assert killed_at(model, whole, 0) == ([0], "")
    assert digests(out) == digests(whole)
    assert {file.name for file in out.iterdir()} == OUTPUTS


def test_successive_plans_from_what_the_first_plan_leaves(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    flags = (
        "--keep",
        "0.6",
        *QUICK,
        "--skip-checkpoint",
        "--no-validate",
        "--set",
        "successive=yes",
    )
    done = run("compress", checkpoint_of("qwen3_moe"), *flags, "-o", out)
    assert done.returncode == 0, done.stderr
    stored = json.loads((out / "calibration-pruned" / "statistics.json").read_text())
    plan = load_plan(out / "plan.json")
    assert len(stored["pruned_by"]) == len(plan.digest)
    assert stored["pruned_by"] != plan.digest
    assert plan.keep_ratio <= 0.6
