"""Peak memory predicted from an outline, against fresh processes that run the file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import tiny

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.planning.memory.table import kv_bytes
from tenp_edge.planning.options.devices import load_profile, this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan
from tenp_edge.runtime.child import ChildError, ask
from tenp_edge.runtime.gguf.header import read_header
from tenp_edge.runtime.memory import peak, peak_questions
from tenp_edge.runtime.memory.footprint import MemoryRun
from tenp_edge.runtime.memory.peak import measure_peak_rss, predict_peak
from tenp_edge.runtime.memory.resident import peak_rss_bytes, resident_bytes

MIB = 2**20
# What predictions add for code that only a run touches (5 MiB in llama.cpp), of which a machine may
# touch little, and whole MiB.
SLACK_BYTES = 6 * MIB
LAYOUTS = ("per-expert", "merged")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """12 MB of weights, a cache and buffers of several MB each."""
    directory = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 256, "moe_intermediate_size": 512, "max_position_embeddings": 4096}
    return Checkpoint(tiny.make(directory, "qwen3_moe", **sizes))


def outline(model: Checkpoint, layout: str, target: Path, quant: str = "Q8_0") -> Path:
    return EXPORTER.write_outline(model, model.config, ExportOptions(quant, layout), target)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_predicted_peak_is_measured(model: Checkpoint, layout: str, tmp_path: Path) -> None:
    """Of the command that people type: never below its peak, and little above it. The sweep of
    30 settings is bench_memory.py."""
    options = ExportOptions("Q8_0", layout)
    file = outline(model, layout, tmp_path / "model.gguf")
    runs = (MemoryRun(512, 64, "Q8_0", 1), MemoryRun(2048, 256, "F16", 1))
    predicted = [predict_peak(file, run) for run in runs]
    EXPORTER.write(ModelSource(model), options, file)
    for run, answer in zip(runs, predicted, strict=True):
        measured = measure_peak_rss(file, **asdict(run), prompt_tokens=run.context)
        assert measured <= answer.total_bytes <= measured + SLACK_BYTES
        assert abs(answer.kv_bytes - kv_bytes(model.config, run)) < 2**14
    assert predicted[1].total_bytes - predicted[0].total_bytes > 2 * MIB


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_outline_is_the_file_without_its_weights(
    model: Checkpoint, layout: str, tmp_path: Path
) -> None:
    options = ExportOptions("F32", layout)
    sketch = outline(model, layout, tmp_path / "outline.gguf", "F32")
    EXPORTER.write(ModelSource(model), options, tmp_path / "model.gguf")
    first, second = read_header(sketch), read_header(tmp_path / "model.gguf")
    assert first.tensors == second.tensors
    assert sketch.stat().st_size == (tmp_path / "model.gguf").stat().st_size
    assert sketch.stat().st_blocks * 512 < first.data_start + 2**16


def test_the_cache_of_a_prediction_is_not_allocated(model: Checkpoint, tmp_path: Path) -> None:
    """A context of 2^20 tokens would be 768 MiB here: asking takes none of it. Its text and ids
    are 64 MiB, counted with the process."""
    file = outline(model, "per-expert", tmp_path / "model.gguf")
    answer = predict_peak(file, MemoryRun(2**20, 64))
    assert answer.kv_bytes == 768 * MIB
    assert 64 * MIB < answer.process_bytes < 112 * MIB


def test_a_confirmed_plan_is_within_the_budget_when_it_runs(
    model: Checkpoint, tmp_path: Path
) -> None:
    device = replace(this_machine(), context=1024, ubatch=64, threads=1)
    whole = make_plan(
        model, device, PlanOptions(keep=1.0, quant="Q8_0", method="tenp"), confirm=True
    )
    assert whole.memory["source"] == "runtime"
    budget = whole.memory["total_bytes"] - 4 * MIB
    plan = make_plan(
        model, device, PlanOptions(budget_bytes=budget, quant="Q8_0", method="tenp"), confirm=True
    )
    # The process is measured anew for every answer, and rounded up to a MiB.
    assert plan.keep_ratio < 1 and 0 <= plan.memory["headroom_bytes"] < 2 * MIB
    unknown = make_plan(model, device, PlanOptions(keep=1.0, quant="Q8_0", method="tenp"))
    assert unknown.memory["source"] == "estimate"


def test_another_device_keeps_its_own_process(model: Checkpoint) -> None:
    device = replace(load_profile("pi5-8gb"), context=512)
    plan = make_plan(model, device, PlanOptions(keep=0.5, method="tenp"), confirm=True)
    assert device.runtime_overhead_bytes is not None
    own = plan.memory["overhead_bytes"] - device.runtime_overhead_bytes
    assert 0 < own < 20 * MIB  # vocabulary, header and graphs of a tiny model


def test_what_the_runtime_refuses_is_refused_by_the_plan(checkpoint_of: Callable) -> None:  # type: ignore[type-arg]
    model = Checkpoint(checkpoint_of("olmoe"))  # heads of 16
    with pytest.raises(UserError) as error:
        make_plan(
            model,
            this_machine(),
            PlanOptions(keep=1.0, kv_type="Q8_0", method="tenp"),
            confirm=True,
        )
    assert error.value.message == (
        "a Q8_0 cache needs heads that are multiples of 32, this model's are 16"
    )
    assert error.value.hint == "--kv-type F16"


def test_the_process_that_is_asked_holds_the_command() -> None:
    """Modules that nobody but a fresh process imports: `ask` refuses names that are none."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert peak._PROGRAM[0] == project["scripts"]["tenp-edge"].partition(":")[0]
    for module in (*peak._PROGRAM, *peak._CONVERSATION):
        assert find_spec(module)
    with pytest.raises(AssertionError, match="moved_away"):
        ask(peak_questions.prompt, {}, ("moved_away",))


def test_a_child_that_dies_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(ChildError, match="exit 1: "):
        ask(peak_questions.predict, {"nothing": 0})
    file = tmp_path / "damaged.gguf"
    file.write_bytes(b"GGUF" + b"\xff" * 64)
    with pytest.raises(UserError, match=r"damaged.gguf is not a usable GGUF file"):
        predict_peak(file, MemoryRun())


def test_resident_memory_is_not_above_its_peak() -> None:
    assert 10 * MIB < resident_bytes() <= peak_rss_bytes() + MIB
