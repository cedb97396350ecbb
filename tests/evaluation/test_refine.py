"""plan --refine: the knobs that measure best, recorded, resumed; and the frontier."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.calibrating import domain, run
from support.command import refused
from support.command import run as command

from tenp_edge.calibration.held_out import SLICE_FILE
from tenp_edge.calibration.text.domains import load_domains, save_domains
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.evaluation.evaluator import LayerCache
from tenp_edge.evaluation.measured_variants import measure_variants
from tenp_edge.evaluation.refine import knobs, known_trials, refine
from tenp_edge.evaluation.variants import Planned
from tenp_edge.planning.measured.kl_law import predicted_kl
from tenp_edge.planning.measured.trials import FILE, Trial
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan

CPU: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
Make = Callable[[PlanOptions], CompressionPlan]


@pytest.fixture(scope="module")
def work(
    checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, Path, Make]:
    """A calibrated tiny model with a slice, and its planner."""
    directory = tmp_path_factory.mktemp("work")
    path = checkpoint_of("qwen3_moe")
    statistics = run(path, directory, [domain("code", 2), domain("prose", 2, seed=1)])
    save_domains(directory / SLICE_FILE, [domain("code", 1, 24, 5), domain("prose", 1, 24, 6)])
    checkpoint = Checkpoint(path)

    def make(request: PlanOptions) -> CompressionPlan:
        known = known_trials(directory)
        return make_plan(checkpoint, this_machine(), request, statistics, measured=known)

    return checkpoint, directory, make


@pytest.mark.parametrize("method", ["tenp", "adaptive"])
def test_the_chosen_plan_measures_best(work: tuple[Checkpoint, Path, Make], method: str) -> None:
    checkpoint, directory, make = work
    request = PlanOptions(keep=0.6, method=method, width_multiple=16, frontier=True)
    chosen = refine(checkpoint, request, make, directory, **CPU)
    refined = chosen.record.refined
    tried = [trial["mean_kl"] for trial in refined["tried"]]
    assert len(tried) > 1
    assert refined["measured_kl"] == min(tried) == tried[0]
    assert refined["seconds"] > 0
    again = make(replace(request, **refined["tried"][0]["changes"]))
    assert again.digest == chosen.digest
    text = load_domains(directory / SLICE_FILE)
    (measured,) = measure_variants(LayerCache(checkpoint.path), [Planned(chosen)], text, **CPU)
    assert measured.mean_kl == pytest.approx(min(tried), rel=1e-5)
    assert chosen.record.chosen_by == "measured KL on held-out text"


def test_measured_plans_are_not_measured_again(
    work: tuple[Checkpoint, Path, Make], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill in the second round only that round is run; after the end nothing is."""
    checkpoint, directory, make = work
    (directory / FILE).unlink(missing_ok=True)
    calls: list[int] = []

    def counted(cache: LayerCache, variants: Any, *rest: Any, **more: Any) -> Any:
        calls.append(len(variants))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure_variants(cache, variants, *rest, **more)

    monkeypatch.setattr("tenp_edge.evaluation.refine.measure_variants", counted)
    request = PlanOptions(keep=0.6, method="adaptive", width_multiple=16)
    with pytest.raises(KeyboardInterrupt):
        refine(checkpoint, request, make, directory, **CPU)
    first = refine(checkpoint, request, make, directory, **CPU)
    assert calls[2] == calls[1] < calls[0]
    done = len(calls)
    assert refine(checkpoint, request, make, directory, **CPU).digest == first.digest
    assert len(calls) == done
    assert len(json.loads((directory / FILE).read_text())["plans"]) == sum(calls) - calls[1]


def test_another_slice_is_measured_anew(
    work: tuple[Checkpoint, Path, Make], tmp_path: Path
) -> None:
    checkpoint, directory, make = work
    request = PlanOptions(keep=0.6, method="enp")
    refine(checkpoint, request, make, directory, **CPU)
    (tmp_path / FILE).write_bytes((directory / FILE).read_bytes())
    save_domains(tmp_path / SLICE_FILE, [domain("other", 2, seed=9)])
    known = set(json.loads((directory / FILE).read_text())["plans"])
    refine(checkpoint, request, make, tmp_path, **CPU)
    found = json.loads((tmp_path / FILE).read_text())["plans"]
    assert set(found) <= known
    assert len(found) < len(known)


def test_pinned_values_are_no_knobs() -> None:
    both = knobs(PlanOptions(method="tenp", shallow=1.0), 0.6)
    assert [sorted(values[0]) for values in both] == [["whole_share"], ["middle"]]
    pinned = PlanOptions(
        method="adaptive", tilt=0.0, neuron_score="energy", unit=0.0, ranking="global"
    )
    assert knobs(pinned, 0.6) == []


def test_what_cannot_be_refined(work: tuple[Checkpoint, Path, Make], tmp_path: Path) -> None:
    checkpoint, directory, make = work
    with pytest.raises(UserError) as caught:
        refine(checkpoint, PlanOptions(keep=0.6, method="drop"), make, directory, **CPU)
    assert caught.value.message == "--method drop has nothing to refine here"
    assert caught.value.hint == "leave --refine out"
    with pytest.raises(UserError) as caught:
        refine(checkpoint, PlanOptions(keep=0.6, method="tenp"), make, tmp_path, **CPU)
    assert caught.value.message == (
        f"{tmp_path} holds no text to refine on: the calibration took all there was"
    )
    assert caught.value.hint == "tenp-edge calibrate again, with more text or fewer --samples"


def test_refine_from_the_command_line(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    model = checkpoint_of("qwen3_moe")
    small = ("--samples", "2", "--seq-len", "64")
    assert command("calibrate", model, *small, "-o", tmp_path).returncode == 0
    assert [len(d.tokens) for d in load_domains(tmp_path / SLICE_FILE)] == [4, 4, 4, 4]
    asked = ("plan", model, "--keep", "0.6", "--method", "adaptive")
    done = command(*asked, "--calibration", tmp_path, "--refine", "--verbose")
    assert done.returncode == 0, done.stderr
    assert "nats on held-out text, best of" in done.stdout
    assert "<- chosen" in done.stdout
    assert refused(*asked, "--refine") == (
        "error: --refine measures plans, which need neurons\n"
        f"try:   --calibration WORK (tenp-edge calibrate {model} -o WORK)\n"
    )


# -- the frontier ----------------------------------------------------------------------------------


def test_frontier_falls_with_the_bytes_and_marks_the_plan(
    work: tuple[Checkpoint, Path, Make],
) -> None:
    _, _, make = work
    for method in ("adaptive", "tenp", "enp", "drop"):
        plan = make(PlanOptions(keep=0.5, method=method, frontier=True, width_multiple=16))
        points = plan.record.frontier
        assert [p["total_bytes"] for p in points if p["chosen"]] == [plan.memory["total_bytes"]]
        kept = [p["keep_ratio"] for p in points]
        losses = [p["predicted_kl"] for p in points]
        assert kept == sorted(kept, reverse=True) and len(kept) >= 4
        assert losses == sorted(losses) and losses[0] == 0


def test_measured_plans_scale_the_prediction() -> None:
    def trials(*points: tuple[float, float]) -> list[Trial]:
        return [Trial({}, 0.5, loss, kl, 1.0) for loss, kl in points]

    law = predicted_kl(0.01)
    twice = trials((0.01, 2 * law), (0.04, 2 * predicted_kl(0.04)))
    assert predicted_kl(0.01, twice) == pytest.approx(2 * law)
    assert predicted_kl(0.0) == 0.0 == predicted_kl(0.0, trials((0.1, 1.0)))


def test_plans_far_apart_give_the_law_their_power() -> None:
    """KL of the losses to the power 0.6, four decades apart."""
    known = [Trial({}, 0.5, loss, 3 * loss**0.6, 1.0) for loss in (1e-4, 1e-2, 1.0)]
    assert predicted_kl(1e-3, known) == pytest.approx(3 * 1e-3**0.6)
    flat = [Trial({}, 0.5, loss, 1.0, 1.0) for loss in (1e-4, 1e-2, 1.0)]
    assert predicted_kl(1.0, flat) > predicted_kl(1e-4, flat)
