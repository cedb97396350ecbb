"""The type that a budget gets, and what the announced time makes of a type."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from support import tiny

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.plan_record import PlanRecord
from tenp_edge.cli.report.plan_tables import _type_line
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan
from tenp_edge.verbs.timing import estimate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Wide enough for K-quants' blocks of 256."""
    directory = tmp_path_factory.mktemp("model")
    return Checkpoint(tiny.make(directory, "qwen3_moe", hidden_size=256, moe_intermediate_size=512))


def planned(model: Checkpoint, **request: object) -> CompressionPlan:
    return make_plan(model, this_machine(), PlanOptions(**{"method": "tenp", **request}))  # type: ignore[arg-type]


def total(model: Checkpoint, quant: str, keep: float = 1.0) -> int:
    return int(planned(model, quant=quant, keep=keep).memory["total_bytes"])


@pytest.mark.parametrize(
    ("size", "keep", "chosen", "tried"),
    [
        ("Q8_0", 1.0, "Q8_0", 1),
        ("Q6_K", 1.0, "Q6_K", 2),  # Q8_0 would keep three quarters
        ("IQ4_XS", 0.5, "IQ4_XS", 5),
    ],
)
def test_the_most_precise_type_that_keeps_enough(
    model: Checkpoint, size: str, keep: float, chosen: str, tried: int
) -> None:
    budget = total(model, size, keep)
    plan = planned(model, budget_bytes=budget)
    choice = plan.record.type_choice
    assert plan.record.quant == choice["quant"] == chosen
    assert plan.memory["total_bytes"] <= budget
    assert len(choice["kept"]) == tried
    assert choice["kept"][chosen] == pytest.approx(keep, abs=0.06)
    assert list(choice["kept"].values()) == sorted(choice["kept"].values())


def test_adaptive_takes_fewer_neurons_for_more_bits(model: Checkpoint) -> None:
    budget = total(model, "Q8_0", 0.75)
    kept = planned(model, budget_bytes=budget).record.type_choice
    assert kept["quant"] != "Q8_0"
    chosen = planned(model, budget_bytes=budget, method="adaptive").record.type_choice
    assert chosen["quant"] == "Q8_0"
    assert chosen["reason"] == "the most precise type that keeps 65 % of the neurons or more"


def test_a_pinned_type_or_size_is_left_alone(model: Checkpoint) -> None:
    budget = total(model, "Q6_K")
    pinned = planned(model, budget_bytes=budget, quant="Q8_0")
    assert pinned.record.quant == "Q8_0" and pinned.record.type_choice is None
    assert pinned.keep_ratio < 0.85
    assert planned(model, keep=0.5).record.quant == "Q8_0"


def test_only_types_of_the_profile_are_tried(model: Checkpoint) -> None:
    device = replace(this_machine(), tensor_types=("F16", "Q8_0", "Q4_K_M", "Q2_K"))
    request = PlanOptions(budget_bytes=total(model, "IQ4_XS", 0.5), method="tenp")
    plan = make_plan(model, device, request)
    assert list(plan.record.type_choice["kept"]) == ["Q8_0", "Q4_K_M"]


def test_experts_of_one_width_alone_are_whole(model: Checkpoint) -> None:
    full = model.config.moe_intermediate_size
    plan = planned(model, budget_bytes=2**33, width_multiple=full)
    choice = plan.record.type_choice
    assert plan.keep_ratio == 1 and choice is not None and choice["quant"] == "Q8_0"


def test_the_plan_says_why() -> None:
    choice = {"quant": "Q6_K", "reason": "because", "kept": {"Q8_0": 0.75, "Q6_K": 1.0}}
    assert _type_line(PlanRecord(quant="Q6_K", type_choice=choice)) == (
        "type: Q6_K, because (would keep: Q8_0 about 75.0 %, Q6_K about 100.0 %)"
    )
    assert _type_line(PlanRecord(quant="F16")) == "type: F16"


def test_quantising_counts_in_the_announced_time() -> None:
    fast, slow = (EXPORTER.encoding_speed(ExportOptions(name)) for name in ("Q8_0", "Q4_K_M"))
    assert fast > 2 * slow > 0
    found = estimate(0, 0, 0, 0, 0, 1, 10**9, slow, torch.device("cpu"), torch.float32)
    assert found.total == found.quantisation == pytest.approx(4e9 / slow)
    assert "quantisation" in str(found)
