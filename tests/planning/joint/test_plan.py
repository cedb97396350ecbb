"""Plans with widths and types of their own: within the budget, better than one type."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support.calibrating import domain
from support.calibrating import run as calibrated
from support.planning import check_legal, total

import tenp_edge
from tenp_edge.calibration.held_out import SLICE_FILE
from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import Statistics
from tenp_edge.calibration.text.domains import save_domains
from tenp_edge.checkpoint.compression_plan import CompressionPlan, load_plan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.evaluation.evaluator import LayerCache
from tenp_edge.evaluation.measured_variants import measure_variants
from tenp_edge.evaluation.rounding import measure_rounding
from tenp_edge.evaluation.rounding_job import RoundingJob
from tenp_edge.evaluation.validation import validate
from tenp_edge.evaluation.variants import OtherWeights
from tenp_edge.exporters.base import ExportData, ExportOptions
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.planning.joint.losses import unseen
from tenp_edge.planning.measured.kl_law import loss_of_kl, predicted_kl
from tenp_edge.planning.measured.probes import KEEPS, PLAIN
from tenp_edge.planning.measured.rounding_errors import MixedCost, RoundingErrors
from tenp_edge.planning.measured.trials import Trial
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan
from tenp_edge.units import format_size

Known = tuple[Checkpoint, Statistics, RoundingErrors]
OPTIONS = ExportOptions("Q8_0", "per-expert", imatrix=True)
CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    """The bundled model, which was trained, and what rounding does to it."""
    model = Checkpoint(Path(tenp_edge.__file__).parent / "demo_model")
    work = tmp_path_factory.mktemp("work")
    statistics = calibrated(model.path, work, [domain("code", 8, 64)])
    save_domains(work / SLICE_FILE, [domain("code", 1, 64, 5)])
    errors = measure_rounding(model, RoundingJob(EXPORTER, OPTIONS), statistics, work, **CPU)
    return model, statistics, errors


def planned(known: Known, rounding: bool = True, **request: Any) -> CompressionPlan:
    model, statistics, errors = known
    request = {"context": 256, "width_multiple": 32} | request
    given = errors if rounding else None
    return make_plan(model, this_machine(), PlanOptions(**request), statistics, rounding=given)


@pytest.fixture(scope="module")
def budget(known: Known) -> int:
    """What three quarters of the neurons take in five bits."""
    return total(planned(known, quant="Q5_K_M", keep=0.75))


def test_a_plan_fits_and_loses_less_than_one_type(known: Known, budget: int) -> None:
    plan = planned(known, budget_bytes=budget, frontier=True)
    check_legal(plan, known[0])
    assert 0 <= budget - total(plan) < 0.01 * plan.memory["experts_bytes"]
    assert plan.record.quant == "auto" and plan.types is not None and plan.retained is not None
    choice = plan.record.type_choice
    assert choice is not None and choice["by"] == "joint search"
    assert max(choice["pruning_kl"], choice["type_kl"]) < choice["kl"]
    assert choice["whole"] is None or choice["kl"] < choice["whole"]["predicted_kl"]
    assert len(plan.types.names) > 1 and sum(choice["types"].values()) == pytest.approx(1)


def test_the_file_has_the_bytes_and_the_types_of_the_plan(
    known: Known, budget: int, tmp_path: Path
) -> None:
    plan = planned(known, budget_bytes=budget)
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json").types == plan.types
    options = ExportOptions("auto", "per-expert", imatrix=True, types=plan.file_types)
    source, data = ModelSource(known[0], plan), ExportData(Importance(known[1], plan))
    EXPORTER.write(source, options, tmp_path / "model.gguf", data)
    assert (tmp_path / "model.gguf").stat().st_size == plan.files["model.gguf"]


def test_experts_may_lose_all_neurons(known: Known, tmp_path: Path) -> None:
    """Those that enough tokens judge; and the file is what the plan says."""
    limit = total(planned(known, quant="Q4_K_M", keep=0.25))
    plan = planned(known, budget_bytes=limit)
    check_legal(plan, known[0])
    assert plan.constants and plan.means is not None and plan.means.keys() == plan.constants
    rows = list(plan.widths.values())
    assert plan.keeps_places and any(0 in row for row in rows) and all(any(row) for row in rows)
    reached = {layer: known[1].layer("code", layer)["tokens"] for layer in plan.widths}
    for layer, row in plan.widths.items():
        assert all(w or reached[layer][e] >= 32 for e, w in enumerate(row))
    assert plan.record.active_ratio is not None and plan.record.active_ratio < 0.6
    assert total(plan) <= limit
    plan.save(tmp_path / "plan.json")
    options = ExportOptions("auto", "per-expert", imatrix=True, types=plan.file_types)
    source, data = ModelSource(known[0], plan), ExportData(Importance(known[1], plan))
    EXPORTER.write(source, options, tmp_path / "model.gguf", data)
    assert (tmp_path / "model.gguf").stat().st_size == plan.files["model.gguf"]
    text = [domain("code", 1, 64, 5)]
    report = validate(known[0].path, tmp_path / "model.gguf", text, device="cpu", threads=1)
    steps = {loss.stage: loss.overall for loss in report.losses}
    assert list(steps) == ["pruning", "quantisation", "runtime"]
    assert steps["runtime"].mean_kl == pytest.approx(steps["quantisation"].mean_kl, rel=0.05)
    assert report.overall.mean_kl < 1


def test_the_smallest_plan_is_taken(known: Known) -> None:
    """Where every larger one takes too much besides its weights; no plan by bytes fits."""
    limit = 54_000_000
    with pytest.raises(UserError, match="the smallest plan needs"):
        planned(known, rounding=False, budget_bytes=limit)
    plan = planned(known, budget_bytes=limit)
    check_legal(plan, known[0])
    assert total(plan) <= limit and plan.record.quant == "auto"


def test_experts_without_a_gate(tmp_path: Path) -> None:
    """The file has the bytes of the plan: a neuron is one row and one column."""
    tiny.make(tmp_path / "model", "nemotron_h", hidden_size=256, moe_intermediate_size=256)
    model, work = Checkpoint(tmp_path / "model"), tmp_path / "work"
    statistics = calibrated(model.path, work, [domain("code", 4, 64)])
    save_domains(work / SLICE_FILE, [domain("code", 1, 64, 5)])
    errors = measure_rounding(model, RoundingJob(EXPORTER, OPTIONS), statistics, work, **CPU)
    known = model, statistics, errors
    limit = total(planned(known, quant="Q5_K_M", keep=0.75))
    plan = planned(known, budget_bytes=limit)
    check_legal(plan, model)
    assert plan.types is not None and total(plan) <= limit
    options = ExportOptions("auto", "per-expert", imatrix=True, types=plan.file_types)
    source, data = ModelSource(model, plan), ExportData(Importance(statistics, plan))
    EXPORTER.write(source, options, tmp_path / "model.gguf", data)
    assert (tmp_path / "model.gguf").stat().st_size == plan.files["model.gguf"]


def test_more_memory_is_less_loss(known: Known, budget: int) -> None:
    plan = planned(known, budget_bytes=budget, frontier=True)
    frontier = plan.record.frontier
    sizes = [point["total_bytes"] for point in frontier]
    kls = [point["predicted_kl"] for point in frontier]
    assert sizes == sorted(sizes, reverse=True) and kls == sorted(kls)
    (chosen,) = [point for point in frontier if point["chosen"]]
    assert chosen["total_bytes"] == total(plan)
    assert chosen["predicted_kl"] == plan.record.type_choice["kl"]  # type: ignore[index]


def test_all_is_kept_where_it_fits(known: Known) -> None:
    plan = planned(known, budget_bytes=2**30)
    assert plan.keep_ratio == 1 and plan.types is not None and plan.types.names == {"Q8_0"}
    stored = planned(known, budget_bytes=2**30, quant="BF16")
    needs = f"in {format_size(total(stored))}: --quant BF16"
    said = [note for note in plan.record.notes if "BF16" in note]
    assert said == [f"BF16 would fit too, exactly as the model is stored, {needs}"]
    tight = planned(known, budget_bytes=total(stored) - 1)
    assert tight.keep_ratio == 1 and not any("BF16" in note for note in tight.record.notes)
    assert not any("BF16" in note for note in stored.record.notes)


@pytest.mark.parametrize("layout", ["merged", "padded"])
def test_stacked_experts_agree(known: Known, layout: str) -> None:
    room = total(planned(known, quant="Q5_K_M", keep=0.75, layout=layout))
    plan = planned(known, budget_bytes=room, layout=layout)
    assert total(plan) <= room and plan.types is not None
    assert len({width for row in plan.widths.values() for width in row}) == 1
    assert not plan.keeps_places
    rows = (*plan.types.gate_up.values(), *plan.types.down.values())
    assert all(len(set(row)) == 1 for row in rows)
    assert len(plan.types.names) > 1


def test_experts_that_no_token_reached_take_types_without_a_matrix(
    known: Known, budget: int
) -> None:
    plan, statistics = planned(known, budget_bytes=budget), known[1]
    assert plan.types is not None
    for layer, expert in plan.record.unreached:
        assert plan.widths[layer][expert] > 0
        for part in ("gate", "down"):
            assert not EXPORTER.needs_importance(plan.types.expert(layer, expert, part))  # type: ignore[attr-defined]
    assert statistics.has_rounding


def test_without_a_measurement_the_older_rule_stays(known: Known, budget: int) -> None:
    plan = planned(known, rounding=False, budget_bytes=budget)
    assert plan.types is None and plan.record.type_choice is not None
    assert plan.record.type_choice["by"] == "rule"
    assert "calibrate MODEL --types" in plan.record.type_choice["note"]
    model, statistics, errors = known
    older = replace(
        statistics, stored={k: v for k, v in statistics.stored.items() if "rounding" not in k}
    )
    again = planned((model, older, errors), budget_bytes=budget)
    assert again.types is None and again.widths == plan.widths


def test_what_is_pinned_is_left_alone(known: Known, budget: int) -> None:
    assert planned(known, budget_bytes=budget, quant="Q8_0").types is None
    assert planned(known, budget_bytes=budget, method="tenp").types is None
    assert planned(known, budget_bytes=budget, refine=True).types is None
    assert planned(known, budget_bytes=budget, tensor_types=("attn_v=Q8_0",)).types is None
    auto = planned(known, budget_bytes=budget, quant="auto")
    assert auto.types is not None and auto.types == planned(known, budget_bytes=budget).types


def test_it_goes_the_way_that_measured_best(known: Known, budget: int) -> None:
    best = {**PLAIN, "unit": 1.0}
    trials = [
        Trial(way, keep, 0.1 * (1 - keep), kl, 1.0, (kl, kl))
        for keep in KEEPS
        for way, kl in ((PLAIN, 0.2 * (1 - keep)), (best, 0.1 * (1 - keep)))
    ]
    model, statistics, errors = known
    request = PlanOptions(context=256, width_multiple=32, budget_bytes=budget)
    plan = make_plan(model, this_machine(), request, statistics, measured=trials, rounding=errors)
    assert plan.record.way == best
    pinned = make_plan(
        model,
        this_machine(),
        replace(request, unit=1.0),
        statistics,
        measured=trials,
        rounding=errors,
    )
    assert pinned.record.way is None
    assert (plan.widths, plan.types) == (pinned.widths, pinned.types)
    assert plan.widths != planned(known, budget_bytes=budget).widths


def test_a_calibration_that_was_too_short_cuts_nothing_and_beats_one_type(known: Known) -> None:
    """Cuts that were measured to cost far more than predicted, the bundled model's after 64 tokens:
    their law says nothing of rounding."""
    model, statistics, errors = known
    pairs = ((0.9, 7e-7, 0.186), (0.7, 3.2e-5, 0.432), (0.45, 5.5e-4, 0.869))
    trials = [Trial(PLAIN, keep, loss, kl, 1.0) for keep, loss, kl in pairs]
    assert unseen(trials) == pytest.approx(0.86, abs=0.01)
    whole = planned(known, quant="Q4_K_M", keep=1.0)
    request = PlanOptions(context=256, width_multiple=32, budget_bytes=total(whole))
    plan = make_plan(model, this_machine(), request, statistics, measured=trials, rounding=errors)
    assert plan.types is not None and plan.keep_ratio > 0.97
    assert plan.keep_ratio > planned(known, budget_bytes=total(whole)).keep_ratio

    def weights(quant: str, plan: CompressionPlan) -> OtherWeights:
        options = ExportOptions(quant, "per-expert", imatrix=True).typed(plan.file_types)
        data = ExportData(Importance(statistics, plan))
        source = ModelSource(model, plan)
        return OtherWeights(EXPORTER.requantised(source, options, data), quant)  # type: ignore[attr-defined]

    variants = [weights("Q4_K_M", whole), weights("auto", plan)]
    one, own = measure_variants(LayerCache(model.path), variants, [domain("code", 2, 64, 5)], **CPU)
    assert own.mean_kl < 0.7 * one.mean_kl


def test_cuts_that_other_text_feels_make_room_for_fewer_bits(known: Known, budget: int) -> None:
    """Where it loses less than the calibrated one it changes nothing."""
    model, statistics, errors = known
    losses = (1e-5, 1e-3, 1e-2)
    own = tuple(Trial(PLAIN, 0.5, loss, predicted_kl(loss), 0.0) for loss in losses)

    def planned_beside(times: float) -> CompressionPlan:
        there = tuple(MixedCost(loss, times * predicted_kl(loss)) for loss in losses)
        measured = replace(errors, cuts=own, elsewhere=there if times else ())
        return planned((model, statistics, measured), budget_bytes=budget)

    plain, careful = planned_beside(0.1), planned_beside(50.0)
    assert plain.widths == planned_beside(0).widths
    assert careful.keep_ratio > plain.keep_ratio + 0.02
    said = "cutting costs text of other kinds about 50 times"
    assert any(note.startswith(said) for note in careful.record.notes)
    assert not any(note.startswith("cutting costs") for note in plain.record.notes)
    assert total(careful) <= budget and careful.record.predicted_loss < plain.record.predicted_loss  # type: ignore[operator]


def test_the_cuts_beside_the_groups_say_what_a_loss_means(known: Known) -> None:
    """Of plans of one type, too."""
    model, statistics, errors = known
    dear = tuple(
        Trial(PLAIN, 0.5, loss, 8 * predicted_kl(loss), 0.0) for loss in (1e-3, 1e-2, 1e-1)
    )
    ours, usual = (
        planned((model, statistics, replace(errors, cuts=cuts)), keep=0.6, quant="Q8_0")
        for cuts in (dear, ())
    )
    assert ours.widths == usual.widths
    assert ours.record.predicted_kl == pytest.approx(8 * usual.record.predicted_kl)  # type: ignore[operator]


def test_where_cuts_cost_more_than_elsewhere_they_weigh_more(known: Known, budget: int) -> None:
    """By this model's own cuts, measured with the groups where no probes were."""
    model, statistics, errors = known
    losses = (1e-3, 1e-2, 1e-1)
    dear = tuple(Trial(PLAIN, 0.5, loss, 8 * predicted_kl(loss), 0.0) for loss in losses)

    def planned_by(cuts: tuple[Trial, ...]) -> CompressionPlan:
        measured = replace(errors, cuts=cuts, elsewhere=())
        return planned((model, statistics, measured), budget_bytes=budget)

    plain, careful = planned_by(()), planned_by(dear)
    assert careful.keep_ratio > plain.keep_ratio + 0.02


def test_only_types_of_the_profile_are_mixed(known: Known, budget: int) -> None:
    model, statistics, errors = known
    device = replace(this_machine(), tensor_types=("F16", "Q8_0", "Q4_0"))
    request = PlanOptions(budget_bytes=budget, context=256)
    plan = make_plan(model, device, request, statistics, rounding=errors)
    assert plan.types is not None
    assert {"Q4_0"} < plan.types.names <= {"Q8_0", "Q6_K", "Q4_0", "Q4_1"}


def test_auto_needs_a_number_of_bytes(known: Known) -> None:
    with pytest.raises(UserError) as caught:
        planned(known, keep=0.5, quant="auto")
    assert str(caught.value) == (
        "--quant auto chooses types for a number of bytes; --keep names none\n"
        "try: --ram 8GiB instead of --keep, or leave --quant out"
    )


def test_the_law_goes_both_ways() -> None:
    trials = [
        Trial({}, keep, loss, kl, 1.0) for keep, loss, kl in ((0.9, 0.01, 0.02), (0.5, 0.2, 0.3))
    ]
    mixed = [MixedCost(0.01, 0.03), MixedCost(0.2, 0.4)]
    assert predicted_kl(0.2, mixed) == pytest.approx(0.4)
    for measured in ((), trials, mixed):
        assert loss_of_kl(predicted_kl(0.03, measured), measured) == pytest.approx(0.03)
    assert loss_of_kl(0.0) == 0
