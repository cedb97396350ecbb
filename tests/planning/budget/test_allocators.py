"""With statistics: shapes, experts and neurons that stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.synthetic import write_statistics

from tenp_edge.calibration.statistics import LayerStatistics
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import load_plan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.planning.budget.search import largest_fitting
from tenp_edge.planning.options.devices import DeviceProfile
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan


@pytest.mark.parametrize(("busy", "rises"), [(2, True), (0, False)])
def test_the_slope_goes_where_the_loss_is(
    qwen3: Checkpoint, device: DeviceProfile, tmp_path: Path, busy: int, rises: bool
) -> None:
    def edit(domain: str, layer: int, stats: LayerStatistics) -> None:
        if layer == busy:
            stats["relative_activation_sq"].mul_(1000)

    statistics = write_statistics(tmp_path / "s", qwen3.config, qwen3.fingerprint, edit=edit)
    plan = make_plan(qwen3, device, PlanOptions(keep=0.6, method="tenp"), statistics)
    assert plan.record.chosen_by == "predicted loss"
    assert (plan.record.trapezoid.slope > 0) is rises
    counts = plan.record.trapezoid.whole_experts
    assert counts[busy] == max(counts) > counts[2 - busy]


def test_a_u_shape_is_found(qwen3: Checkpoint, device: DeviceProfile, tmp_path: Path) -> None:
    def edit(domain: str, layer: int, stats: LayerStatistics) -> None:
        if layer != 1:
            stats["relative_activation_sq"].mul_(1000)

    statistics = write_statistics(tmp_path / "s", qwen3.config, qwen3.fingerprint, edit=edit)
    plan = make_plan(qwen3, device, PlanOptions(keep=0.6, method="tenp"), statistics)
    assert plan.record.trapezoid.middle < 1
    counts = plan.record.trapezoid.whole_experts
    assert counts[1] == min(counts) < max(counts)


def test_the_choice_is_no_worse_than_any_pinned_shape(
    qwen3: Checkpoint, device: DeviceProfile, statistics: Statistics
) -> None:
    chosen = make_plan(qwen3, device, PlanOptions(keep=0.6, method="tenp"), statistics)
    for shallow, deep in ((1, 2), (2, 1), (1, 1)):
        request = PlanOptions(keep=0.6, shallow=shallow, deep=deep, middle=1, method="tenp")
        pinned = make_plan(qwen3, device, request, statistics)
        assert (pinned.record.trapezoid.shallow, pinned.record.trapezoid.deep) == (shallow, deep)
        assert chosen.record.predicted_loss <= pinned.record.predicted_loss + 1e-12


def test_flags_pin_alpha_and_multiple(
    qwen3: Checkpoint, device: DeviceProfile, statistics: Statistics
) -> None:
    request = PlanOptions(
        keep=0.6, whole_share=0.25, width_multiple=8, shallow=1, deep=1, method="tenp"
    )
    plan = make_plan(qwen3, device, request, statistics)
    assert plan.record.trapezoid.whole_share == 0.25
    assert plan.record.trapezoid.narrow_width == 40  # (0.6 - 0.25) / 0.75 * 96 = 44.8
    assert plan.record.trapezoid.pinned == ("whole_share", "shallow", "deep")


def test_best_experts_stay_whole_with_their_best_neurons(
    qwen3: Checkpoint, device: DeviceProfile, tmp_path: Path
) -> None:
    def edit(domain: str, layer: int, stats: LayerStatistics) -> None:
        stats["tenp"][7] = 1000
        stats["projection"][0] = torch.arange(96).double() - 50

    statistics = write_statistics(tmp_path / "s", qwen3.config, qwen3.fingerprint, edit=edit)
    plan = make_plan(qwen3, device, PlanOptions(keep=0.6, method="tenp"), statistics)
    assert plan.retained is not None
    for layer, row in plan.widths.items():
        assert row[7] == 96
        width = row[0]
        if width < 96:
            assert plan.retained[layer, 0].tolist() == list(range(96 - width, 96))
    file = tmp_path / "plan.json"
    plan.save(file)
    assert load_plan(file).digest == plan.digest


def test_unreached_experts_stay_narrow_and_are_named(
    qwen3: Checkpoint, device: DeviceProfile, tmp_path: Path
) -> None:
    def edit(domain: str, layer: int, stats: LayerStatistics) -> None:
        if layer == 1:
            for value in (v for name, v in stats.sums.items() if name != "growth"):
                value[3] = 0

    statistics = write_statistics(tmp_path / "s", qwen3.config, qwen3.fingerprint, edit=edit)
    plan = make_plan(qwen3, device, PlanOptions(keep=0.6, method="tenp"), statistics)
    assert plan.record.unreached == ((1, 3),)
    assert plan.widths[1][3] == plan.record.trapezoid.narrow_width == 32
    assert plan.retained is not None
    norms = statistics.weight_norms(1)
    norm = torch.stack([norms[name][3] for name in norms]).norm(dim=0)
    assert plan.retained[1, 3].tolist() == sorted(norm.topk(32).indices.tolist())
    free = make_plan(qwen3, device, PlanOptions(keep=0.7, method="free"), statistics)
    assert free.widths[1][3] == 64  # what a uniform plan would give it
    removal = make_plan(qwen3, device, PlanOptions(keep=0.9, method="drop"), statistics)
    assert removal.widths[1][3] == 0


def test_active_ratio_by_hand(qwen3: Checkpoint, device: DeviceProfile, tmp_path: Path) -> None:
    """Expert 7 takes 930 of 1000 tokens: R_active = 0.93 + 0.07 * 32 / 96 of a whole expert."""

    def edit(domain: str, layer: int, stats: LayerStatistics) -> None:
        stats["tokens"].fill_(10)
        stats["tokens"][7] = 930
        stats["tenp"].copy_(stats["tokens"])

    statistics = write_statistics(tmp_path / "s", qwen3.config, qwen3.fingerprint, edit=edit)
    request = PlanOptions(keep=0.42, whole_share=0.125, shallow=1, deep=1, middle=1, method="tenp")
    plan = make_plan(qwen3, device, request, statistics)
    assert plan.record.trapezoid.whole_experts == (1, 1, 1)
    assert plan.record.active_ratio == pytest.approx(0.93 + 0.07 / 3)
    assert plan.record.layer_retention["0"] == pytest.approx(0.125 + 0.875 / 3)


@pytest.mark.parametrize("ranking", ["global", "layer"])
def test_free_widths_follow_the_ranking(
    qwen3: Checkpoint, device: DeviceProfile, tmp_path: Path, ranking: str
) -> None:
    def edit(domain: str, layer: int, stats: LayerStatistics) -> None:
        stats["gated_activation_sq"].mul_(10.0**layer)

    statistics = write_statistics(tmp_path / "s", qwen3.config, qwen3.fingerprint, edit=edit)
    request = PlanOptions(keep=0.6, method="free", ranking=ranking, width_multiple=8)
    plan = make_plan(qwen3, device, request, statistics)
    layers = [sum(row) for row in plan.widths.values()]
    assert len({w for row in plan.widths.values() for w in row}) >= 3
    if ranking == "layer":
        assert max(layers) - min(layers) <= 8
    else:
        assert layers[0] < layers[1] < layers[2]


@pytest.mark.parametrize("budget", [1000, 1001, 5437, 9999, 12345, 99_999])
def test_largest_fitting_is_exact_on_a_bent_price(budget: int) -> None:
    prices = []

    def price(n: int) -> int:
        prices.append(n)
        return n + 7 * (n // 100) - 1000 * (n < 3000) + 1000

    found = largest_fitting(0, 200_000, 4, price, budget)
    assert price(found) <= budget < price(found + 4)
    assert len(prices) < 50
