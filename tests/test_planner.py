"""The planner: exact in bytes, never above, the largest that fits, and clear when nothing does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import toy_exporter
from synthetic import write_statistics

from tenp_edge.budget import largest_fitting, make_space
from tenp_edge.checkpoint import Checkpoint
from tenp_edge.devices import DeviceProfile, this_machine
from tenp_edge.errors import UserError
from tenp_edge.evidence import Evidence, Scores
from tenp_edge.insurance import PROTECTION
from tenp_edge.methods import METHODS
from tenp_edge.models import FAMILIES, read_config
from tenp_edge.plan import CompressionPlan, load_plan
from tenp_edge.planner import make_plan
from tenp_edge.registry import ExportOptions, exporter
from tenp_edge.saliency import prior_losses
from tenp_edge.source import pruned_config
from tenp_edge.spec import PlanOptions
from tenp_edge.statistics import LayerStatistics, Statistics

MIB = 2**20


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeviceProfile:
    """A device that runs the toy format, which is installed as a third party's would be."""
    toy_exporter.install(tmp_path, monkeypatch)
    return replace(
        this_machine(),
        name="toy-device",
        memory_bytes=512 * MIB,
        system_bytes=100 * MIB,
        format="toy",
        layout="per-expert",
        tensor_types=("WIDE", "NARROW"),
        default_tensor_type="WIDE",
        context=1024,
        runtime_overhead_bytes=MIB,
        ubatch=32,
    )


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """One that knows more tokens than the device has."""
    directory = tmp_path_factory.mktemp("qwen3")
    return Checkpoint(tiny.make(directory, "qwen3_moe", max_position_embeddings=4096))


@pytest.fixture
def statistics(qwen3: Checkpoint, tmp_path: Path) -> Statistics:
    return write_statistics(tmp_path / "statistics", qwen3.config, qwen3.fingerprint)


def total(plan: CompressionPlan) -> int:
    return int(plan.memory["total_bytes"])


def check_legal(plan: CompressionPlan, checkpoint: Checkpoint, multiple: int = 32) -> None:
    full = checkpoint.config.moe_intermediate_size
    for row in plan.widths.values():
        for width in row:
            removed = width == 0 and plan.record.method == "drop"
            assert removed or width == full or (width and width % multiple == 0)
    json.dumps(plan.to_json())


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [0.4, 0.6, 0.75, 1.0])
def test_keep_is_the_largest_legal_plan_not_above(
    checkpoint_of: Callable[[str], Path],
    device: DeviceProfile,
    tmp_path: Path,
    family: str,
    method: str,
    keep: float,
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    config = checkpoint.config
    statistics = write_statistics(tmp_path / "statistics", config, checkpoint.fingerprint)
    request = PlanOptions(keep=keep, method=method, width_multiple=16)
    plan = make_plan(checkpoint, device, request, statistics)
    check_legal(plan, checkpoint, 16)
    if method == "drop":
        least = 6 if family == "deepseek_v3" else config.num_experts_per_tok
        kept = max(round(keep * config.num_experts), least)
        kept -= kept % config.n_group
        assert all(sum(w > 0 for w in row) == kept for row in plan.widths.values())
        return
    assert plan.keep_ratio <= keep
    experts, full = config.num_experts * len(config.moe_layers), config.moe_intermediate_size
    step = {"enp": 16 * experts, "free": 16, "adaptive": 16}.get(method)
    if step is None:
        step = full - (plan.record.trapezoid.narrow_width if plan.record.trapezoid else 0)
    assert keep == 1.0 == plan.keep_ratio or plan.keep_ratio + step / (experts * full) > keep


@pytest.mark.parametrize("method", METHODS)
def test_budget_is_never_exceeded_and_rises_with_the_plan(
    qwen3: Checkpoint, device: DeviceProfile, statistics: Statistics, method: str
) -> None:
    full = total(make_plan(qwen3, device, PlanOptions(keep=1.0, method="tenp")))
    ratios = []
    for missing in (480_000, 350_000, 200_000, 120_000, 50_000, 1, 0):
        request = PlanOptions(budget_bytes=full - missing, method=method)
        plan = make_plan(qwen3, device, request, statistics)
        check_legal(plan, qwen3)
        assert total(plan) <= full - missing
        assert plan.memory["headroom_bytes"] == full - missing - total(plan)
        ratios.append(plan.keep_ratio)
    assert ratios == sorted(ratios)
    assert ratios[-1] == 1.0 > ratios[-2]


def test_one_more_whole_expert_would_not_fit(qwen3: Checkpoint, device: DeviceProfile) -> None:
    full = total(make_plan(qwen3, device, PlanOptions(keep=1.0, method="tenp")))
    plan = make_plan(qwen3, device, PlanOptions(budget_bytes=full - 300_000, method="tenp"))
    hidden, narrow = qwen3.config.hidden_size, plan.record.trapezoid.narrow_width
    assert plan.memory["headroom_bytes"] < (96 - narrow) * hidden * 3 * 2


def test_the_files_of_the_plan_are_the_manifest_of_the_pruned_model(
    qwen3: Checkpoint, device: DeviceProfile
) -> None:
    plan = make_plan(
        qwen3,
        device,
        PlanOptions(keep=0.5, method="tenp"),
        extra_files=lambda plan: {
            "checkpoint/model.safetensors": sum(map(sum, plan.widths.values()))
        },
    )
    config = pruned_config(qwen3.config, plan)
    manifest = exporter("toy").manifest(qwen3, config, ExportOptions("WIDE", "per-expert"))
    kept = sum(map(sum, plan.widths.values()))
    assert plan.files == {**manifest.files, "checkpoint/model.safetensors": kept}


def test_gguf_of_every_layout_is_priced(qwen3: Checkpoint) -> None:
    profile = replace(this_machine(), tensor_types=("F32", "F16", "BF16", "Q8_0"))
    sizes = {}
    for layout in ("per-expert", "merged", "padded"):
        plan = make_plan(qwen3, profile, PlanOptions(keep=0.7, layout=layout, method="tenp"))
        sizes[layout] = sum(plan.files.values())
        check_legal(plan, qwen3)
    assert sizes["padded"] > sizes["per-expert"] > 0


def test_merged_layout_takes_one_width(
    qwen3: Checkpoint, device: DeviceProfile, statistics: Statistics
) -> None:
    plan = make_plan(
        qwen3, device, PlanOptions(keep=0.7, layout="merged", method="tenp"), statistics
    )
    assert {width for row in plan.widths.values() for width in row} == {64}
    assert plan.record.allocation == "uniform"
    assert "the merged layout takes one width for all experts: uniform allocation" in (
        plan.record.notes
    )


def test_a_model_that_fits_is_left_whole(qwen3: Checkpoint, device: DeviceProfile) -> None:
    plan = make_plan(qwen3, device, PlanOptions(method="tenp"))
    assert plan.keep_ratio == 1.0
    assert plan.record.fits_whole is True
    assert plan.record.notes == ("the full model fits: nothing is cut",)
    assert plan.memory["budget_bytes"] == device.budget_bytes == 412 * MIB


def test_without_calibration_the_paper_s_shape_by_bytes(
    qwen3: Checkpoint, device: DeviceProfile
) -> None:
    plan = make_plan(qwen3, device, PlanOptions(keep=0.6, method="tenp"))
    assert plan.retained is None
    assert plan.record.chosen_by == "bytes with the paper's shape"
    assert (plan.record.trapezoid.shallow, plan.record.trapezoid.deep) == (1.0, 2.0)
    assert plan.record.trapezoid.whole_experts == (2, 3, 4)
    assert plan.widths[0] == (96, 96, 32, 32, 32, 32, 32, 32)


# -- with statistics -------------------------------------------------------------------------------


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


# -- the search ------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1000, 1001, 5437, 9999, 12345, 99_999])
def test_largest_fitting_is_exact_on_a_bent_price(budget: int) -> None:
    prices = []

    def price(n: int) -> int:
        prices.append(n)
        return n + 7 * (n // 100) - 1000 * (n < 3000) + 1000

    found = largest_fitting(0, 200_000, 4, price, budget)
    assert price(found) <= budget < price(found + 4)
    assert len(prices) < 50


# -- refused ---------------------------------------------------------------------------------------


def refused(
    checkpoint: Checkpoint,
    device: DeviceProfile,
    request: PlanOptions,
    statistics: Statistics | None = None,
) -> tuple[str, str | None]:
    with pytest.raises(UserError) as caught:
        make_plan(checkpoint, device, request, statistics)
    return caught.value.message, caught.value.hint


def test_an_infeasible_profile_names_what_would_fit(
    qwen3: Checkpoint, device: DeviceProfile
) -> None:
    small = replace(device, memory_bytes=103 * MIB, context=4096)
    assert refused(qwen3, small, PlanOptions(method="tenp")) == (
        "the smallest plan needs 4.91 MiB with --context 4096; toy-device leaves 3.00 MiB",
        "--context 1024 (2.47 MiB) or --ram 4.92MiB",
    )


def test_an_infeasible_budget_names_other_types(qwen3: Checkpoint, device: DeviceProfile) -> None:
    message, hint = refused(qwen3, device, PlanOptions(budget_bytes=2_450_000, method="tenp"))
    assert message == "the smallest plan needs 2.47 MiB with --context 1024; --ram allows 2.34 MiB"
    assert hint == (
        "--context 512 (2.07 MiB) or --kv-type Q8_0 (2.12 MiB) or --quant NARROW (2.24 MiB) "
        "or --ram 2.48MiB"
    )
    plan = make_plan(
        qwen3, device, PlanOptions(budget_bytes=2_450_000, quant="NARROW", method="tenp")
    )
    assert total(plan) <= 2_450_000
    smallest = make_plan(qwen3, device, PlanOptions(budget_bytes=int(2.48 * MIB), method="tenp"))
    assert smallest.keep_ratio == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("request_", "message", "hint"),
    [
        (
            PlanOptions(keep=0.3, method="tenp"),
            "--keep 0.3 is below the smallest legal plan, 0.3333 "
            "(cut experts are at least 32 of 96 neurons wide)",
            "--keep 0.3334 or a smaller --set width-multiple",
        ),
        (
            PlanOptions(kv_type="Q4_0"),
            "--kv-type Q4_0 is not known",
            "--kv-type F32|F16|Q8_0",
        ),
        (
            PlanOptions(keep=1.2, method="tenp"),
            "--keep 1.2 is not above 0 and at most 1",
            "--keep 0.6",
        ),
        (
            PlanOptions(keep=0.6, whole_share=0.7, method="tenp"),
            "--set whole-share=0.7 is more than --keep 0.6: the whole experts alone would not fit",
            "--set whole-share=0.3",
        ),
        (
            PlanOptions(method="magic"),
            "--method magic is not known",
            "--method tenp|enp|drop|free|adaptive",
        ),
        (
            PlanOptions(method="free", keep=0.6),
            "--method free ranks neurons and needs calibration",
            "--calibration WORK (tenp-edge calibrate), or --method tenp",
        ),
        (
            PlanOptions(format="onyx", method="tenp"),
            "no exporter for format 'onyx'",
            "--format gguf, onnx, toy",
        ),
        (
            PlanOptions(quant="HUGE", method="tenp"),
            "format toy cannot write HUGE",
            "--quant WIDE|NARROW",
        ),
        (
            PlanOptions(layout="padded", method="tenp"),
            "format toy has no layout 'padded'",
            "--layout per-expert|merged",
        ),
        (
            PlanOptions(shallow=0, deep=0, method="tenp"),
            "shallow and deep are both 0",
            "--set shallow=1 --set deep=2",
        ),
        (
            PlanOptions(deep=-1, method="tenp"),
            "--set deep=-1 is not at least 0",
            "--set deep=2",
        ),
        (
            PlanOptions(context=0, method="tenp"),
            "--context 0 is not above 0",
            "--context 4096",
        ),
        (
            PlanOptions(keep=0.9, budget_bytes=2_700_000, method="tenp"),
            "--keep 0.9 needs 2.99 MiB; --ram allows 2.57 MiB",
            "leave --keep out, or --ram 2.99MiB",
        ),
    ],
)
def test_requests_that_cannot_work(
    qwen3: Checkpoint, device: DeviceProfile, request_: PlanOptions, message: str, hint: str
) -> None:
    assert refused(qwen3, device, request_) == (message, hint)


def test_statistics_of_another_model(
    qwen3: Checkpoint, device: DeviceProfile, tmp_path: Path
) -> None:
    foreign = write_statistics(tmp_path / "s", qwen3.config, "f" * 32)
    message, hint = refused(qwen3, device, PlanOptions(keep=0.6, method="tenp"), foreign)
    assert message == (
        "the statistics belong to another checkpoint (ffffffffffff, "
        f"this one is {qwen3.fingerprint[:12]})"
    )
    assert hint == "calibrate this model"


# -- size ------------------------------------------------------------------------------------------


def test_a_quarter_of_a_30b_shape_plans_in_seconds(
    qwen3: Checkpoint, device: DeviceProfile, tmp_path: Path
) -> None:
    """12 layers x 128 experts x 768: statistics alone, priced as a model of that shape."""
    raw = tiny.CONFIGS["qwen3_moe"] | {
        "num_hidden_layers": 12,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    }
    config = read_config(raw, FAMILIES)
    checkpoint = Checkpoint(qwen3.path)
    checkpoint.config = config
    statistics = write_statistics(tmp_path / "s", config, checkpoint.fingerprint, domains=("code",))
    full = total(make_plan(checkpoint, device, PlanOptions(keep=1.0, method="tenp")))
    request = PlanOptions(budget_bytes=full * 2 // 3, method="tenp")
    start = time.process_time()
    plan = make_plan(checkpoint, device, request, statistics)
    assert time.process_time() - start < 15
    assert 0.9 * full * 2 / 3 < total(plan) <= full * 2 // 3


# -- own widths by predicted loss ------------------------------------------------------------------


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
