"""What types cost, measured; and types and widths chosen together by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny, toy_exporter
from support.calibrating import domain
from support.calibrating import run as calibrated

import tenp_edge
from tenp_edge.calibration.held_out import SLICE_FILE
from tenp_edge.calibration.storage import Statistics
from tenp_edge.calibration.text.domains import save_domains
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.evaluation import type_sensitivity
from tenp_edge.evaluation.type_sensitivity import TypeJob, measure_types, spread
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.models import FAMILIES, read_config
from tenp_edge.planning.budget.tensor_types import (
    MEASURE_HINT,
    Curve,
    Point,
    best,
    frontier_over_types,
)
from tenp_edge.planning.measured.kl_law import together_kl
from tenp_edge.planning.measured.type_costs import FILE, Conditions, TypeCost, TypeCosts, load_costs
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan
from tenp_edge.progress import QuietProgress
from tenp_edge.verbs import measure_types as typeverbs
from tenp_edge.verbs.options import CalibrationOptions

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
OPTIONS = ExportOptions("Q8_0", "per-expert", imatrix=True)
TYPES = ("Q8_0", "Q4_K_M", "Q2_K")
Work = tuple[Checkpoint, Statistics, Path]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A calibrated model with a slice, wide enough for the blocks of 256."""
    model, directory = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("work")
    tiny.make(model, "qwen3_moe", hidden_size=256, moe_intermediate_size=512)
    statistics = calibrated(model, directory, [domain("code", 3), domain("prose", 3, seed=1)])
    save_domains(directory / SLICE_FILE, [domain("code", 2, 48, 5), domain("prose", 2, 48, 6)])
    return Checkpoint(model), statistics, directory


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """The bundled model: random weights have no loss worth the name."""
    directory = tmp_path_factory.mktemp("trained")
    model = Path(tenp_edge.__file__).parent / "demo_model"
    statistics = calibrated(model, directory, [domain("code", 4, 64)])
    save_domains(directory / SLICE_FILE, [domain("code", 1, 96, 5), domain("prose", 1, 96, 6)])
    return Checkpoint(model), statistics, directory


def job(*quants: str, layers: tuple[int, ...] | None = None) -> TypeJob:
    return TypeJob(EXPORTER, OPTIONS, quants, layers)


def measured(work: Work, directory: Path, *quants: str, **options: Any) -> TypeCosts:
    checkpoint, statistics, slices = work
    if not (directory / SLICE_FILE).exists():
        (directory / SLICE_FILE).write_bytes((slices / SLICE_FILE).read_bytes())
    return measure_types(checkpoint, job(*quants, **options), statistics, directory, **CPU)


# -- measuring -------------------------------------------------------------------------------------


def test_fewer_bits_cost_more(trained: Work, tmp_path: Path) -> None:
    costs = measured(trained, tmp_path, *TYPES)
    kls = [costs.types[quant].kl for quant in TYPES]
    assert 0 < kls[0] < kls[1] < kls[2]
    assert load_costs(tmp_path) == costs and costs.layers == (0, 1, 2, 3, 4, 5)


def test_only_what_is_missing_is_measured(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measured(work, tmp_path, "Q8_0")
    ran: list[int] = []
    measure = type_sensitivity.measure_variants

    def counted(checkpoint: Checkpoint, variants: Any, *rest: Any, **options: Any) -> Any:
        ran.append(len(variants))
        return measure(checkpoint, variants, *rest, **options)

    monkeypatch.setattr(type_sensitivity, "measure_variants", counted)
    both = measured(work, tmp_path, "Q8_0", "Q4_K_M")
    assert measured(work, tmp_path, "Q4_K_M") == both
    assert ran == [1] and both.types["Q8_0"] == first.types["Q8_0"]
    save_domains(tmp_path / SLICE_FILE, [domain("code", 1, 48, 9)])
    other = measured(work, tmp_path, "Q4_K_M")
    assert ran == [1, 1] and list(other.types) == ["Q4_K_M"]


def test_a_sample_of_layers_stands_for_all(trained: Work, tmp_path: Path) -> None:
    """Six layers of one size, four of them quantised."""
    cost = measured(trained, tmp_path, "Q4_K_M", layers=(0, 2, 3, 5)).types["Q4_K_M"]
    assert cost.scale == pytest.approx(1.5**0.84)
    assert cost.kl == pytest.approx(cost.layers_kl * cost.scale + cost.ends_kl)
    whole = measured(trained, tmp_path, "Q4_K_M").types["Q4_K_M"]
    assert 0.4 * whole.kl < cost.kl < 2.5 * whole.kl


def test_large_models_are_sampled() -> None:
    assert spread(48, 10) == (0, 5, 10, 16, 21, 26, 31, 37, 42, 47)
    assert spread(3, 4) == (0, 1, 2)
    wide = {"num_hidden_layers": 30, "num_experts": 64, "moe_intermediate_size": 1024}
    large = read_config(tiny.CONFIGS["qwen3_moe"] | wide, FAMILIES)
    assert job("Q8_0").chosen_layers(large) == (0, 6, 12, 17, 23, 29)


def test_what_cannot_be_measured(work: Work, tmp_path: Path) -> None:
    checkpoint, statistics, directory = work
    with pytest.raises(UserError) as caught:
        measure_types(checkpoint, job("Q8_0"), statistics, tmp_path, **CPU)
    assert caught.value.message == (
        f"{tmp_path} holds no text to refine on: the calibration took all there was"
    )
    toy = TypeJob(toy_exporter.EXPORTER, ExportOptions("WIDE"), ("WIDE",))
    with pytest.raises(UserError) as caught:
        measure_types(checkpoint, toy, statistics, directory, **CPU)
    assert caught.value.message == "format toy cannot say what its types cost"
    assert caught.value.hint == "leave --types out"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "{file} was not written by tenp-edge"),
        ('{"kind": "tenp-edge types", "version": 1}', "{file} is damaged"),
    ],
)
def test_a_file_that_is_not_ours(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UserError) as caught:
        load_costs(tmp_path)
    assert caught.value.message == message.format(file=tmp_path / FILE)


def test_another_version_is_measured_again(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"kind": "tenp-edge types", "version": 0}')
    assert load_costs(tmp_path) is None


# -- choosing --------------------------------------------------------------------------------------


def costs_for(checkpoint: Checkpoint, imatrix: bool = True, **kls: float) -> TypeCosts:
    """Written by hand."""
    conditions = Conditions(checkpoint.fingerprint, "text", "gguf", imatrix)
    types = {name: TypeCost(kl, kl, 0.0, 1.0, 0.0) for name, kl in kls.items()}
    return TypeCosts(conditions, "per-expert", (0, 1, 2), types)


def planned(work: Work, costs: TypeCosts | None, **request: Any) -> CompressionPlan:
    asked = PlanOptions(**request)
    return make_plan(work[0], this_machine(), asked, work[1], costs=costs)


@pytest.fixture(scope="module")
def budget(work: Work) -> int:
    """What Q8_0 takes at half of the neurons."""
    return int(planned(work, None, quant="Q8_0", keep=0.5).memory["total_bytes"])


@pytest.mark.parametrize("method", ["adaptive", "tenp", "enp", "free", "drop"])
def test_the_least_loss_wins(work: Work, budget: int, method: str) -> None:
    """Each type's plan is the one it gets when it is pinned, its loss that plan's own."""
    kls = {"Q8_0": 1e-6, "Q6_K": 2e-6, "Q4_K_M": 1e-5, "Q2_K": 1e-4}
    costs = costs_for(work[0], **kls)
    plan = planned(work, costs, budget_bytes=budget, method=method)
    choice = plan.record.type_choice
    assert choice["by"] == "measured loss" and [p["quant"] for p in choice["types"]] == list(kls)
    sums = {}
    for point in choice["types"]:
        name = point["quant"]
        alone = planned(work, costs, budget_bytes=budget, quant=name, method=method)
        assert point["keep_ratio"] == pytest.approx(alone.keep_ratio, abs=0.02), name
        sums[name] = together_kl(alone.record.predicted_kl, kls[name])
        assert point["type_kl"] == alone.record.type_kl == kls[name]
        assert point["kl"] == pytest.approx(sums[name], rel=0.1)
    chosen = min(choice["types"], key=lambda point: point["kl"])["quant"]
    assert plan.record.quant == choice["quant"] == chosen
    assert plan.memory["total_bytes"] <= budget


@pytest.mark.parametrize("cheap", ["Q8_0", "Q4_K_M", "Q2_K"])
def test_bits_that_cost_nothing_are_taken(work: Work, budget: int, cheap: str) -> None:
    kls = {name: 0.0 if name == cheap else 9.0 for name in ("Q8_0", "Q4_K_M", "Q2_K")}
    plan = planned(work, costs_for(work[0], **kls), budget_bytes=budget)
    assert plan.record.quant == cheap and plan.record.type_kl == 0
    assert plan.memory["total_bytes"] <= budget


def test_a_profile_may_forbid_types(work: Work, budget: int) -> None:
    device = replace(this_machine(), tensor_types=("Q8_0", "Q4_K_M"))
    costs = costs_for(work[0], Q8_0=1.0, Q4_K_M=1.0, Q2_K=0.0)
    request = PlanOptions(budget_bytes=budget, method="adaptive")
    plan = make_plan(work[0], device, request, work[1], costs=costs)
    assert [p["quant"] for p in plan.record.type_choice["types"]] == ["Q8_0", "Q4_K_M"]


def test_what_was_not_measured_is_chosen_by_the_rule(work: Work, budget: int) -> None:
    """Nothing measured, files of other options, no statistics: the rule, and how to do better."""
    rule = planned(work, None, budget_bytes=budget)
    assert rule.record.type_choice["by"] == "rule"
    assert rule.record.type_choice["note"] == MEASURE_HINT
    assert rule.record.type_kl is None
    other = costs_for(work[0], imatrix=False, Q8_0=9.0, Q2_K=0.0)
    assert planned(work, other, budget_bytes=budget).record == rule.record
    costs = costs_for(work[0], Q8_0=9.0, Q2_K=0.0)
    request = PlanOptions(budget_bytes=budget, method="adaptive")
    by_bytes = make_plan(work[0], this_machine(), request, costs=costs)
    assert by_bytes.record.type_choice["by"] == "rule"


def test_pinned_types_and_sizes_are_left_alone(work: Work, budget: int) -> None:
    costs = costs_for(work[0], Q8_0=9.0, Q2_K=0.0)
    pinned = planned(work, costs, budget_bytes=budget, quant="Q8_0")
    assert pinned.record.quant == "Q8_0" and pinned.record.type_choice is None
    assert planned(work, costs, keep=0.5).record.quant == "Q8_0"


def test_nothing_fits_is_refused_as_without(work: Work) -> None:
    costs = costs_for(work[0], Q8_0=9.0, Q2_K=0.0)
    texts = []
    for known in (costs, None):
        with pytest.raises(UserError) as caught:
            planned(work, known, budget_bytes=2**20)
        texts.append(caught.value.message)
    assert texts[0] == texts[1] and texts[0].startswith("the smallest plan needs ")


def curve(quant: str, type_kl: float, bytes_each: int) -> Curve:
    """100 neurons of ``bytes_each`` beside 100 bytes; a cut of n costs (n / 100)^2 nats."""
    priced = {10: 100 + 10 * bytes_each, 100: 100 + 100 * bytes_each}
    return Curve(quant, type_kl, priced, lambda size: (1 - size / 100) ** 2, 100)


def test_the_frontier_moves_from_bits_to_neurons() -> None:
    """At 8 and 4 bytes a neuron: 0.0 + (1 - (B - 100) / 800)^2 against 0.1 + (...) of 400."""
    curves = [curve("BIG", 0.0, 8), curve("SMALL", 0.1, 4)]
    assert curves[0].within(500) == Point("BIG", 0.5, 500, 0.25, 0.0)
    assert curves[1].within(500) == Point("SMALL", 1.0, 500, 0.0, 0.1)
    assert curves[0].within(100) is None
    rows = frontier_over_types(curves, 800)
    assert [(row["share"], row["quant"], row["keep_ratio"]) for row in rows] == [
        (0.6, "SMALL", 0.95),
        (0.75, "SMALL", 1.0),
        (0.9, "BIG", 0.77),
        (1.0, "BIG", 0.87),
        (1.25, "BIG", 1.0),
    ]
    assert best([Point("A", 1, 1, 0.1, 0.1), Point("B", 1, 1, 0.2, 0.0)]).quant == "A"


# -- the verbs -------------------------------------------------------------------------------------


def test_compress_measures_where_it_is_cheap(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one note says how to; what is there already costs nothing."""
    notes: list[str] = []

    class Notes(QuietProgress):
        def note(self, text: str) -> None:
            notes.append(text)

    checkpoint, statistics, directory = work
    (tmp_path / SLICE_FILE).write_bytes((directory / SLICE_FILE).read_bytes())
    compute = CalibrationOptions(samples=1, seq_len=16, device="cpu")

    def asked() -> None:
        given = checkpoint, job("Q8_0"), statistics, tmp_path, compute, Notes()
        typeverbs.types_if_cheap(*given)

    monkeypatch.setattr(typeverbs, "CHEAP_SECONDS", 0)
    asked()
    assert not (tmp_path / FILE).exists()
    assert len(notes) == 1 and notes[0].startswith("types are chosen by a rule: measuring what")
    assert notes[0].endswith(f"tenp-edge calibrate MODEL --types -o {tmp_path} does")
    monkeypatch.setattr(typeverbs, "CHEAP_SECONDS", 60)
    asked()
    monkeypatch.setattr(typeverbs, "CHEAP_SECONDS", 0)
    asked()
    assert len(notes) == 1 and typeverbs.costs_of(checkpoint, tmp_path) is not None
    save_domains(tmp_path / SLICE_FILE, [domain("code", 1, 48, 9)])
    assert typeverbs.costs_of(checkpoint, tmp_path) is None  # measured on other text
