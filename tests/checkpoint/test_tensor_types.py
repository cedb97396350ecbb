"""Types of every tensor in a plan: kept, shortened, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.edits import refusal
from support.mixes import mix
from support.plans import ragged_plan, removal_plan

from tenp_edge.checkpoint.compression_plan import CompressionPlan, load_plan, names_types
from tenp_edge.checkpoint.files import Checkpoint

CheckpointOf = Callable[[str], Path]


@pytest.fixture
def typed(checkpoint_of: CheckpointOf) -> CompressionPlan:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    return replace(
        ragged_plan(checkpoint), types=mix(checkpoint.config, ("Q4_0", "IQ4_NL"), ("Q8_0",))
    )


def test_types_come_back(typed: CompressionPlan, tmp_path: Path) -> None:
    typed.save(tmp_path / "plan.json")
    raw = json.loads((tmp_path / "plan.json").read_text())
    assert raw["version"] == 3 and names_types(tmp_path / "plan.json")
    assert raw["types"]["gate_up"]["0"] == " ".join(("Q4_0 IQ4_NL",) * 4)
    assert raw["types"]["down"] == {"0": "Q8_0*8", "1": "Q8_0*8", "2": "Q8_0*8"}
    assert raw["types"]["others"]["2.v"] == raw["types"]["others"]["embed"] == "Q8_0"
    back = load_plan(tmp_path / "plan.json")
    assert back.types == typed.types
    assert back.digest == typed.digest == replace(typed, types=None).digest


def test_a_plan_without_types_is_as_before(typed: CompressionPlan, tmp_path: Path) -> None:
    replace(typed, types=None).save(tmp_path / "plan.json")
    raw = json.loads((tmp_path / "plan.json").read_text())
    assert raw["version"] == 2 and "types" not in raw and not names_types(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json").types is None


def test_removed_experts_take_their_types_along(checkpoint_of: CheckpointOf) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    types = mix(checkpoint.config, ("Q4_0", "Q5_0", "Q8_0"), ("Q8_0",))
    plan = replace(removal_plan(checkpoint, 2), types=types)
    assert plan.file_types is not None
    assert plan.file_types.gate_up[0] == types.gate_up[0][-2:]
    assert types.row(1, "up") == types.row(1, "gate") != types.row(1, "down")


MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no layer": (lambda t: t["down"].pop("1"), "the plan's types do not have the experts"),
    "one too many": (
        lambda t: t["gate_up"].update({"0": "Q4_0*9"}),
        "the plan's types do not have the experts",
    ),
    "a number": (lambda t: t["down"].update({"0": 8}), "the plan's types are malformed"),
    "a list": (lambda t: t.update(gate_up=[]), "the plan's types are malformed"),
    "a run of many": (
        lambda t: t["down"].update({"0": "Q8_0*99999999999"}),
        "the plan's types are malformed",
    ),
    "none for others": (lambda t: t["others"].update(embed=None), "the plan's types are malformed"),
    "no others": (lambda t: t.pop("others"), "the plan's types are malformed"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_types_are_refused(name: str, typed: CompressionPlan, tmp_path: Path) -> None:
    change, why = MALFORMED[name]
    typed.save(tmp_path / "plan.json")
    raw = json.loads((tmp_path / "plan.json").read_text())
    change(raw["types"])
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    message, hint = refusal(lambda: load_plan(tmp_path / "plan.json"))
    assert message.startswith(why) and hint == "plan again"


def test_a_plan_that_lost_its_types_is_refused(typed: CompressionPlan, tmp_path: Path) -> None:
    typed.save(tmp_path / "plan.json")
    raw = json.loads((tmp_path / "plan.json").read_text())
    del raw["types"]
    (tmp_path / "plan.json").write_text(json.dumps(raw))
    assert refusal(lambda: load_plan(tmp_path / "plan.json")) == (
        f"{tmp_path / 'plan.json'}: field 'types' is missing or malformed",
        "plan again",
    )
