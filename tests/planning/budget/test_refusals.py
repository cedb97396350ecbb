"""What cannot be planned, and what would fit instead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.planning import total
from support.synthetic import write_statistics

from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.planning.options.devices import DeviceProfile
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan

MIB = 2**20


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
            PlanOptions(kv_type="Q4_9"),
            "--kv-type Q4_9 is not known",
            "--kv-type F32|F16|BF16|Q8_0|Q5_1|Q5_0|Q4_1|Q4_0",
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
            "--method adaptive|tenp|enp|free|drop",
        ),
        (
            PlanOptions(method="free", keep=0.6),
            "--method free ranks neurons and needs calibration",
            "--calibration WORK (tenp-edge calibrate MODEL -o WORK), or --method tenp",
        ),
        (
            PlanOptions(format="onyx", method="tenp"),
            "no exporter for format 'onyx'",
            "--format gguf|onnx|toy",
        ),
        (
            PlanOptions(format="mlx", method="tenp"),
            "no exporter for format 'mlx'",
            "--layout merged, a GGUF that llama.cpp runs on a Mac; docs/platforms.md says why",
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
    assert hint == "tenp-edge calibrate MODEL -o WORK, then --calibration WORK"
