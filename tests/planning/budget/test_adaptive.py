"""Own widths by predicted loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.synthetic import write_statistics

from tenp_edge.calibration.statistics import LayerStatistics
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.planning.budget.search import make_space
from tenp_edge.planning.options.devices import DeviceProfile
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan
from tenp_edge.planning.scores.tables import Evidence, Scores
from tenp_edge.scoring.losses import prior_losses
from tenp_edge.scoring.regularisation import PROTECTION


def test_adaptive_counts_in_units_of_the_residual_stream(
    qwen3: Checkpoint, device: DeviceProfile, tmp_path: Path
) -> None:
    """A layer whose energies are large, but small against its stream, is not favoured."""

    def edit(domain: str, layer: int, stats: LayerStatistics) -> None:
        stats["gated_activation_sq"].mul_(1000.0 ** (layer == 0))
        stats["relative_activation_sq"].mul_(1000.0 ** (layer == 2))

    statistics = write_statistics(tmp_path / "s", qwen3.config, qwen3.fingerprint, edit=edit)
    kept = {}
    for method in ("free", "adaptive"):
        request = PlanOptions(keep=0.6, method=method, width_multiple=16)
        plan = make_plan(qwen3, device, request, statistics)
        kept[method] = [sum(row) for row in plan.widths.values()]
    assert kept["free"][0] == max(kept["free"])
    assert kept["adaptive"][2] == max(kept["adaptive"]) > kept["adaptive"][0]


def test_adaptive_predicts_less_loss_than_every_other_method(
    qwen3: Checkpoint, device: DeviceProfile, statistics: Statistics
) -> None:
    def loss(method: str) -> float:
        request = PlanOptions(keep=0.6, method=method, width_multiple=16, protect="none")
        plan = make_plan(qwen3, device, request, statistics)
        return float(plan.record.predicted_loss)

    assert loss("adaptive") < min(loss(other) for other in ("tenp", "enp", "free", "drop"))


INSURED = PlanOptions(method="adaptive", neuron_score="relative", width_multiple=8)


def test_insurance_keeps_experts_that_the_text_rarely_chose(
    qwen3: Checkpoint, device: DeviceProfile, tmp_path: Path
) -> None:
    """Expert 3 was chosen by a hundredth of an ordinary expert's tokens, and did as much with each;
    expert 5 by even fewer than the least number that is believed."""

    def edit(domain: str, layer: int, stats: LayerStatistics) -> None:
        for expert, share in ((3, 0.01), (5, 1e-6)):
            scale = share * stats["tokens"].mean() / stats["tokens"][expert]
            for name in ("tokens", "relative_activation_sq", "relative_projection"):
                stats[name][expert] *= scale

    statistics = write_statistics(tmp_path / "s", qwen3.config, qwen3.fingerprint, edit=edit)

    def widths(protect: str) -> tuple[int, ...]:
        request = replace(INSURED, keep=0.7, protect=protect)
        return make_plan(qwen3, device, request, statistics).widths[1]

    assert widths("none")[3] == widths("none")[5] == 8
    assert widths("much")[3] > 8
    assert widths("little")[5] == 8


def test_insurance_counts_norms_where_the_text_says_nothing(
    qwen3: Checkpoint, tmp_path: Path
) -> None:
    def edit(domain: str, layer: int, stats: LayerStatistics) -> None:
        for name in ("relative_activation_sq", "relative_projection"):
            stats[name][3] *= 1e-12  # reached, but not used

    statistics = write_statistics(tmp_path / "s", qwen3.config, qwen3.fingerprint, edit=edit)
    space = make_space(qwen3.config, 8)
    scores = Scores("tenp", "relative", 0, shared_ranking=True, insurance=PROTECTION["little"])
    found = Evidence(statistics, space, scores).layers[1]
    prior = prior_losses(statistics, 1)[3].sum()
    assert float(found.insured[3, 0]) == pytest.approx(0.02 * float(prior), rel=1e-6)
    assert float(found.losses[3, 0]) < 1e-9 * float(found.losses[2, 0])


def test_names_of_domains_decide_nothing(
    qwen3: Checkpoint, device: DeviceProfile, tmp_path: Path
) -> None:
    """The same sums from one domain or from two give one plan; asking for protection draws widths
    together."""

    def edit(domain: str, layer: int, stats: LayerStatistics) -> None:
        busy = torch.arange(1, len(stats["tokens"]) + 1, dtype=torch.float64) ** 2
        for name in ("tokens", "relative_activation_sq", "relative_projection"):
            value = stats[name]
            value.copy_(busy.reshape(-1, *[1] * (value.ndim - 1)).expand_as(value))
        stats["growth"].copy_(torch.tensor([0.1, 1.0]))
        stats["tokens"].mul_(1000)  # none of them few

    def plan(domains: tuple[str, ...], protect: str | None = None) -> CompressionPlan:
        config, where = qwen3.config, tmp_path / f"{len(domains)}"
        statistics = write_statistics(where, config, qwen3.fingerprint, domains=domains, edit=edit)
        request = replace(INSURED, keep=0.6, protect=protect)
        return make_plan(qwen3, device, request, statistics)

    def spread(found: CompressionPlan) -> int:
        return max(found.widths[1]) - min(found.widths[1])

    one, two = plan(("code",)), plan(("code", "prose"))
    assert one.widths == two.widths
    assert spread(plan(("code",), "much")) < spread(one)


def test_tilt_moves_neurons_to_deep_layers(
    qwen3: Checkpoint, device: DeviceProfile, statistics: Statistics
) -> None:
    def deep_share(tilt: float) -> float:
        request = PlanOptions(keep=0.6, method="adaptive", width_multiple=16, tilt=tilt)
        rows = list(make_plan(qwen3, device, request, statistics).widths.values())
        return sum(rows[-1]) / sum(rows[0])

    assert deep_share(-3) < deep_share(0) < deep_share(3)


def test_budgets_along_a_trapezoid_and_by_coverage(
    qwen3: Checkpoint, device: DeviceProfile, tmp_path: Path
) -> None:
    def edit(domain: str, layer: int, stats: LayerStatistics) -> None:
        stats["relative_activation_sq"].mul_(100.0**layer)
        stats["relative_projection"].mul_(10.0**layer)

    statistics = write_statistics(tmp_path / "s", qwen3.config, qwen3.fingerprint, edit=edit)

    def layers(**knobs: object) -> list[int]:
        request = PlanOptions(keep=0.6, method="adaptive", width_multiple=8)
        plan = make_plan(qwen3, device, replace(request, **knobs), statistics)  # type: ignore[arg-type]
        assert plan.keep_ratio <= 0.6 < plan.keep_ratio + 0.02
        return [sum(row) for row in plan.widths.values()]

    even, wide = layers(ranking="layer"), layers(ranking="global")
    assert max(even) - min(even) <= 8 < wide[2] - wide[0]
    falling = layers(ranking="trapezoid", shallow=3.0, deep=1.0)
    assert falling[0] > falling[1] > falling[2]
    covered = layers(ranking="coverage")
    assert max(covered) - min(covered) < wide[2] - wide[0]


def test_guards_keep_super_experts_whole_and_rare_ones_even(
    qwen3: Checkpoint, device: DeviceProfile, tmp_path: Path
) -> None:
    def silence(stats: LayerStatistics, expert: int) -> None:
        for name in ("relative_activation_sq", "relative_projection"):
            stats[name][expert] = 0

    def edit(domain: str, layer: int, stats: LayerStatistics) -> None:
        if layer == 0:
            stats["gated_activation_max"][5, 7] = 1000
            silence(stats, 5)
        if layer == 1:
            stats["tokens"][2] = 3
            silence(stats, 2)

    statistics = write_statistics(tmp_path / "s", qwen3.config, qwen3.fingerprint, edit=edit)
    found = {}
    for guards in ((), ("super",), ("tail",), ("super", "tail")):
        request = PlanOptions(keep=0.7, method="adaptive", guards=guards, protect="none")
        plan = make_plan(qwen3, device, request, statistics)
        assert plan.keep_ratio <= 0.7
        found[guards] = plan.widths[0][5], plan.widths[1][2]
    assert found == {
        (): (32, 32),
        ("super",): (96, 32),
        ("tail",): (32, 64),
        ("super", "tail"): (96, 64),
    }
    with pytest.raises(UserError) as caught:
        make_plan(qwen3, device, PlanOptions(keep=0.7, guards=("soft",), method="tenp"), statistics)
    assert caught.value.message == "--set guard=soft is not known"
    assert caught.value.hint == "--set guard=super|tail"


def test_adaptive_without_calibration_is_a_trapezoid_of_its_size(
    qwen3: Checkpoint, device: DeviceProfile
) -> None:
    plan = make_plan(qwen3, device, PlanOptions(keep=0.6, method="adaptive"))
    assert plan.widths == make_plan(qwen3, device, PlanOptions(keep=0.6, method="tenp")).widths
    assert any(note.startswith("planned by bytes alone") for note in plan.record.notes)
