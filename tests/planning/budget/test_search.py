"""The planner: exact in bytes, never above, the largest that fits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support import tiny
from support.planning import check_legal, total
from support.synthetic import write_statistics

from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import pruned_config
from tenp_edge.exporters.base import ExportOptions, exporter
from tenp_edge.models import FAMILIES, read_config
from tenp_edge.planning.options.devices import DeviceProfile, this_machine
from tenp_edge.planning.options.methods import METHODS
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan

MIB = 2**20


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
