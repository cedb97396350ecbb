"""Widths and types of ONNX in one search: within the budget, and written as planned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.calibrating import domain
from support.calibrating import run as calibrated
from support.planning import check_legal, total

from tenp_edge.calibration.held_out import SLICE_FILE
from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import Statistics
from tenp_edge.calibration.text.domains import save_domains
from tenp_edge.checkpoint.compression_plan import CompressionPlan, load_plan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.evaluation.mixed_plans import decoded
from tenp_edge.evaluation.rounding import measure_rounding
from tenp_edge.evaluation.validation import validate
from tenp_edge.exporters.base import ExportData, ExportOptions, exporter
from tenp_edge.exporters.onnx import EXPORTER
from tenp_edge.planning.measured.rounding_errors import FILE, RoundingErrors, load_errors
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.options.target import resolve
from tenp_edge.planning.planner import make_plan
from tenp_edge.verbs.export import export_options
from tenp_edge.verbs.measure_types import rounding_job
from tenp_edge.verbs.options import FileOptions

Known = tuple[Checkpoint, Statistics, RoundingErrors]
TEXT = [domain("code", 1, 64, 5)]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """A model with experts of eight legal widths, and what rounding does to it."""
    work = tmp_path_factory.mktemp("work")
    path = tiny.make(tmp_path_factory.mktemp("model"), "qwen3_moe", moe_intermediate_size=256)
    statistics = calibrated(path, work, [domain("code", 4, 64)])
    save_domains(work / SLICE_FILE, TEXT)
    job = rounding_job(EXPORTER, ExportOptions("none", "portable", imatrix=True))
    assert job is not None
    how: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
    errors = measure_rounding(Checkpoint(path), job, statistics, work, **how)
    assert load_errors(work, "onnx") == errors and not (work / FILE).exists()
    return Checkpoint(path), statistics, errors


def planned(known: Known, mode: str, **request: Any) -> CompressionPlan:
    model, statistics, errors = known
    asked = PlanOptions(**{"format": "onnx", "layout": mode, "context": 64, "ubatch": 8} | request)
    return make_plan(model, this_machine(), asked, statistics, confirm=True, rounding=errors)


@pytest.mark.parametrize("mode", ["portable", "ort-cpu"])
def test_a_plan_fits_and_is_what_is_written(known: Known, mode: str, tmp_path: Path) -> None:
    model, statistics, _ = known
    budget = total(planned(known, mode, quant="int8", keep=0.6))
    plan = planned(known, mode, budget_bytes=budget, frontier=True)
    check_legal(plan, model)
    assert total(plan) <= budget and plan.record.quant == "auto" and plan.types is not None
    assert len(plan.types.names) > 1
    choice = plan.record.type_choice
    assert choice is not None and choice["by"] == "joint search" and choice["wholes"]
    if mode == "ort-cpu":
        assert plan.types.gate_up == plan.types.down
        pairs = {
            pair
            for layer, row in plan.widths.items()
            for pair in zip(row, plan.types.gate_up[layer], strict=True)
        }
        assert 1 < len(pairs) <= 8
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json").types == plan.types

    options = ExportOptions("auto", mode, imatrix=True, types=plan.file_types)
    out, source = tmp_path / "onnx", ModelSource(model, plan)
    EXPORTER.write(source, options, out, ExportData(Importance(statistics, plan)))
    sizes = {f"onnx/{file.name}": file.stat().st_size for file in out.iterdir()}
    assert sizes == dict(plan.files)
    foreseen = decoded(model, plan, EXPORTER, options, statistics)
    back = EXPORTER.read_back(out, model.config)
    for name in back.tensors:
        assert torch.equal(foreseen.read(name).float(), back.read(name)), name
    report = validate(model.path, out, TEXT, device="cpu", threads=1)
    steps = {loss.stage: loss.overall.mean_kl for loss in report.losses}
    assert list(steps) == ["pruning", "quantisation", "export"]
    assert steps["export"] == pytest.approx(steps["quantisation"], rel=0.1, abs=1e-5)


def test_nodes_that_would_cost_neurons_are_left_out(known: Known) -> None:
    """A pair of a width and a type is nodes of a graph, which on a small model are more than its
    weights: in the memory of the whole model in one type no plan is worse than that."""
    whole = planned(known, "ort-cpu", quant="int4", keep=1.0)
    plan = planned(known, "ort-cpu", budget_bytes=total(whole), frontier=True)
    assert total(plan) <= total(whole)
    choice = plan.record.type_choice
    assert choice is not None
    (same,) = (other for other in choice["wholes"] if other["quant"] == "int4")
    assert choice["kl"] <= same["predicted_kl"]


def test_without_measurements_a_rule_chooses_one_of_the_modes_types(known: Known) -> None:
    def choosable(mode: str) -> tuple[str, ...]:
        asked = PlanOptions(format="onnx", layout=mode, budget_bytes=2**30)
        spec = resolve(asked, this_machine(), known[0].config.max_position_embeddings)
        return spec.choosable(EXPORTER.automatic_quants)

    assert choosable("portable") == choosable("ort-cpu") == ("none", "int8", "int4")
    assert choosable("static") == ("none", "int8")
    assert rounding_job(EXPORTER, ExportOptions("none", "static", imatrix=True)) is None
    budget = total(planned(known, "portable", quant="int4", keep=0.5))
    asked = PlanOptions(format="onnx", budget_bytes=budget, context=64, ubatch=8)
    plan = make_plan(known[0], this_machine(), asked, known[1])
    assert plan.record.quant in EXPORTER.quants and plan.types is None
    note = (plan.record.type_choice or {})["note"]
    assert "`tenp-edge calibrate MODEL --types --format onnx -o WORK`" in note


def test_types_of_another_format_are_left(known: Known, tmp_path: Path) -> None:
    """Such a plan is exported in the format's default, as plans without types are."""
    budget = total(planned(known, "portable", quant="int4", keep=0.9))
    plan = planned(known, "portable", budget_bytes=budget)
    plan.save(tmp_path / "plan.json")
    found = {
        name: export_options(FileOptions(format=name, plan=tmp_path / "plan.json")).quant
        for name in ("onnx", "gguf")
    }
    assert found == {"onnx": "auto", "gguf": exporter("gguf").default_quant}
