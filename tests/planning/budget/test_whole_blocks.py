"""Widths whose rows fill the blocks of the tensor type are a candidate of every plan by memory."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from support import tiny
from support.planning import total
from support.synthetic import write_statistics

from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.planning.options.devices import load_profile
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan
from tenp_edge.units import format_size, percent

GIB = 2**30
PROFILE = load_profile("laptop-8gb")
OPTIONS = PlanOptions(method="free", quant="Q4_K_M", budget_bytes=GIB, context=256)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """As Nemotron's 1856 and gpt-oss' 2880: 832 neurons are no whole blocks of 256."""
    directory = tmp_path_factory.mktemp("blocks")
    return Checkpoint(tiny.make(directory, "qwen3_moe", hidden_size=256, moe_intermediate_size=832))


@pytest.fixture(scope="module")
def statistics(model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    directory = tmp_path_factory.mktemp("statistics")
    return write_statistics(directory, model.config, model.fingerprint)


@pytest.fixture(scope="module")
def whole(model: Checkpoint, statistics: Statistics) -> CompressionPlan:
    return make_plan(model, PROFILE, OPTIONS, statistics)


@pytest.fixture(scope="module")
def narrower(model: Checkpoint) -> CompressionPlan:
    """Every expert at the largest multiple of 256."""
    return make_plan(model, PROFILE, replace(OPTIONS, method="enp", keep=0.9231, budget_bytes=None))


def note_of(plan: CompressionPlan) -> str:
    (note,) = (text for text in plan.record.notes if "whole blocks" in text)
    return note


def weights(plan: CompressionPlan) -> int:
    return int(plan.memory["experts_bytes"]) + int(plan.memory["other_weights_bytes"])


def test_a_whole_model_says_what_whole_blocks_would_save(
    whole: CompressionPlan, narrower: CompressionPlan
) -> None:
    assert whole.keep_ratio == 1
    assert {w for row in narrower.widths.values() for w in row} == {768}
    assert note_of(whole) == (
        "experts of 832 neurons are no whole blocks of Q4_K_M: with 768 (92.3 %) the weights take "
        f"{format_size(weights(whole) - weights(narrower))} less; --quant Q4_K_M --method enp "
        "--keep 0.9231 instead of --ram cuts them so"
    )


def test_a_plan_takes_whole_blocks_where_they_buy_more(
    model: Checkpoint, statistics: Statistics, narrower: CompressionPlan
) -> None:
    options = replace(OPTIONS, budget_bytes=total(narrower))
    plan = make_plan(model, PROFILE, options, statistics)
    fine = make_plan(model, PROFILE, replace(options, width_multiple=32), statistics)
    assert {w for row in plan.widths.values() for w in row} <= {256, 512, 768}
    assert plan.record.width_multiple == 256
    assert total(plan) <= options.budget_bytes
    assert plan.record.predicted_kl is not None and fine.record.predicted_kl is not None
    assert plan.record.predicted_kl < fine.record.predicted_kl
    assert re.fullmatch(
        r"widths are multiples of 256, whole blocks of Q4_K_M, which saves [\d.]+ [KM]iB: "
        rf"{percent(plan.keep_ratio)} of the neurons fit, of other widths "
        rf"{percent(fine.keep_ratio)}",
        note_of(plan),
    )
    assert plan.record.active_ratio is not None and plan.record.active_ratio < 1


def test_what_is_pinned_and_what_floats_hold_stays(
    model: Checkpoint, statistics: Statistics, narrower: CompressionPlan
) -> None:
    budget = total(narrower)
    for pinned in ({"width_multiple": 32}, {"quant": "Q8_0", "budget_bytes": GIB}):
        options = replace(OPTIONS, **{"budget_bytes": budget, **pinned})
        plan = make_plan(model, PROFILE, options, statistics)
        assert not [note for note in plan.record.notes if "whole blocks" in note]


def test_the_model_is_never_left_without_a_plan(tmp_path: Path) -> None:
    """Experts narrower than a block, and budgets below the smallest plan of whole blocks."""
    narrow = Checkpoint(tiny.make(tmp_path, "qwen3_moe", moe_intermediate_size=96))
    statistics = write_statistics(tmp_path / "statistics", narrow.config, narrow.fingerprint)
    plan = make_plan(narrow, PROFILE, OPTIONS, statistics)
    assert not [note for note in plan.record.notes if "whole blocks" in note]


def test_experts_without_a_gate_have_whole_blocks_too(tmp_path: Path) -> None:
    """Their down alone has rows of a width: Nemotron's 1856 of 2688 becomes 1792."""
    sizes = {"hidden_size": 256, "moe_intermediate_size": 832}
    checkpoint = Checkpoint(tiny.make(tmp_path, "nemotron_h", **sizes))
    whole = make_plan(checkpoint, PROFILE, replace(OPTIONS, method="enp"))
    cut = make_plan(
        checkpoint, PROFILE, replace(OPTIONS, method="enp", keep=0.9231, budget_bytes=None)
    )
    assert {w for row in cut.widths.values() for w in row} == {768}
    saved = (weights(whole) - weights(cut)) / int(whole.memory["experts_bytes"])
    assert saved > 2 * (1 - 768 / 832), "the cut, and down in its own type again"
    assert note_of(whole).startswith(
        "experts of 832 neurons are no whole blocks of Q4_K_M: with 768"
    )


def test_less_than_the_smallest_plan_of_blocks(model: Checkpoint, statistics: Statistics) -> None:
    every_256 = replace(OPTIONS, method="enp", keep=0.31, budget_bytes=None)
    smallest = make_plan(model, PROFILE, every_256)
    assert {w for row in smallest.widths.values() for w in row} == {256}
    options = replace(OPTIONS, budget_bytes=total(smallest) - weights(smallest) // 5)
    plan = make_plan(model, PROFILE, options, statistics)
    assert plan.record.width_multiple == 32 and plan.keep_ratio < 256 / 832
