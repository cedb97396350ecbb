"""How width is shared out: measured on held-out text, once a calibration, and used by plans."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from support.calibrating import domain
from support.command import run as command

from tenp_edge.calibration.held_out import SLICE_FILE, slice_samples, stored_slice
from tenp_edge.calibration.storage import load_statistics
from tenp_edge.calibration.text.domains import save_domains
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.evaluation.refine import known_trials
from tenp_edge.planning.measured.probes import KEEPS, PLAIN, WAYS, best_way, probe
from tenp_edge.planning.measured.trials import MeasuredKL, Records, Trial
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan

ADAPTIVE = PlanOptions(method="adaptive")
LAYER, ENERGY = ({**PLAIN, "ranking": "layer"}, {**PLAIN, "unit": 2.0})


def trials(*rows: tuple[dict[str, object], float, float]) -> list[Trial]:
    """(way, keep, KL)."""
    return [Trial(way, keep, 0.1, kl, 1.0) for way, keep, kl in rows]


def test_the_way_that_measured_best_near_the_size() -> None:
    """Even budgets win at 0.7, energies at 0.45; between them the logarithms are interpolated."""
    known = trials(
        (PLAIN, 0.9, 0.0010),
        (LAYER, 0.9, 0.0005),
        (PLAIN, 0.7, 0.010),
        (LAYER, 0.7, 0.005),
        (ENERGY, 0.695, 0.012),
        (PLAIN, 0.45, 0.10),
        (LAYER, 0.45, 0.11),
        (ENERGY, 0.44, 0.05),
    )
    assert best_way(known, ADAPTIVE, 0.95) == LAYER == best_way(known, ADAPTIVE, 0.7)
    assert best_way(known, ADAPTIVE, 0.45) == ENERGY == best_way(known, ADAPTIVE, 0.2)
    assert best_way(known, ADAPTIVE, 0.66) == LAYER
    assert best_way(known, ADAPTIVE, 0.5) == ENERGY


def test_a_small_gain_is_no_reason() -> None:
    known = trials((PLAIN, 0.7, 0.0100), (LAYER, 0.7, 0.0099), (PLAIN, 0.45, 0.1))
    assert best_way(known, ADAPTIVE, 0.7) == {}
    assert best_way([], ADAPTIVE, 0.6) == {}


def test_a_gain_that_nobody_notices_is_no_reason() -> None:
    assert best_way(trials((PLAIN, 0.7, 1e-4), (LAYER, 0.7, 0.5e-4)), ADAPTIVE, 0.7) == {}
    assert best_way(trials((PLAIN, 0.7, 4e-4), (LAYER, 0.7, 2e-4)), ADAPTIVE, 0.7) == LAYER


def test_a_gain_that_the_sequences_do_not_agree_on_is_no_reason() -> None:
    """The same mean, once of sequences that all say so, once of one that outweighs the others."""
    plain = Trial(PLAIN, 0.7, 0.1, 0.010, 1.0, (0.010,) * 4)
    agreed = Trial(LAYER, 0.7, 0.1, 0.009, 1.0, (0.009,) * 4)
    lucky = Trial(LAYER, 0.7, 0.1, 0.009, 1.0, (0.0115, 0.0115, 0.0115, 0.0015))
    assert best_way([plain, agreed], ADAPTIVE, 0.7) == LAYER
    assert best_way([plain, lucky], ADAPTIVE, 0.7) == {}


@pytest.mark.parametrize(
    "request_",
    [
        PlanOptions(method="tenp"),
        PlanOptions(method="free"),
        PlanOptions(method="adaptive", unit=0.0),
        PlanOptions(method="adaptive", ranking="coverage"),
        PlanOptions(method="adaptive", protect="much"),
        PlanOptions(method="adaptive", tilt=0.5),
        PlanOptions(method="adaptive", guards=("super",)),
    ],
)
def test_what_is_pinned_is_not_changed(request_: PlanOptions) -> None:
    known = trials((PLAIN, 0.7, 0.02), (LAYER, 0.7, 0.01))
    assert best_way(known, ADAPTIVE, 0.7) == LAYER
    assert best_way(known, request_, 0.7) == {}


def test_calibrate_measures_once_and_plan_uses_it(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model, work = checkpoint_of("qwen3_moe"), tmp_path / "work"
    call = ("calibrate", model, "--samples", "4", "--seq-len", "64", "-o", work)
    done = command(*call)
    assert done.returncode == 0, done.stderr
    known = known_trials(work)
    assert len({str(dict(trial.changes)) for trial in known}) > 2
    assert len(known) <= len(KEEPS) * len(WAYS)
    before = (work / "refine.json").read_bytes()
    assert command(*call).returncode == 0
    assert (work / "refine.json").read_bytes() == before
    checkpoint, statistics = Checkpoint(model), load_statistics(work)
    # A tiny model loses nothing that anybody notices: as if it lost more, and of one sequence.
    known = tuple(replace(t, mean_kl=1e6 * t.mean_kl, sequence_kl=()) for t in known)
    for keep in KEEPS:
        plan = make_plan(
            checkpoint,
            this_machine(),
            PlanOptions(keep=keep, method="adaptive"),
            statistics,
            measured=known,
        )
        near = [t for t in known if abs(t.keep_ratio - keep) < 0.03]
        least = min(near, key=lambda trial: trial.mean_kl)
        plain = next(trial for trial in near if trial.changes == PLAIN)
        if least.mean_kl < 0.98 * plain.mean_kl:
            assert plan.record.way == least.changes
        else:
            assert plan.record.way is None


def test_a_killed_probe_goes_on(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    """A size that was measured is not measured again."""
    model, work = checkpoint_of("olmoe"), tmp_path / "work"
    call = ("calibrate", model, "--samples", "2", "--seq-len", "64", "-o", work)
    assert command(*call).returncode == 0
    checkpoint, statistics = Checkpoint(model), load_statistics(work)
    state = json.loads((work / "refine.json").read_text())
    records = Records(tmp_path, state["slice"])
    asked: list[int] = []

    def make(request: PlanOptions) -> CompressionPlan:
        return make_plan(checkpoint, this_machine(), request, statistics)

    def measure(plans: Sequence[CompressionPlan]) -> list[MeasuredKL]:
        asked.append(len(plans))
        if len(asked) == 2:
            raise KeyboardInterrupt
        return [MeasuredKL(1.0, (1.0, 1.0))] * len(plans)

    with pytest.raises(KeyboardInterrupt):
        probe(make, records, measure, seed=0)
    probe(make, Records(tmp_path, state["slice"]), measure, seed=0)
    assert len(asked) == len(KEEPS) + 1 and asked[1] == asked[2]


def test_what_another_calibration_measured_decides_nothing(tmp_path: Path) -> None:
    save_domains(tmp_path / SLICE_FILE, [domain("code", 2)])
    text = stored_slice(tmp_path)
    assert text is not None
    (trial,) = trials((PLAIN, 0.7, 0.02))
    Records(tmp_path, text).add({"plan": trial})
    assert known_trials(tmp_path) == (trial,)
    save_domains(tmp_path / SLICE_FILE, [domain("code", 2, seed=5)])
    assert known_trials(tmp_path) == ()


def test_held_out_text_too_short_to_tell_anything_is_none(tmp_path: Path) -> None:
    save_domains(tmp_path / SLICE_FILE, [domain("code", 1, 12)])
    assert stored_slice(tmp_path) is None and known_trials(tmp_path) == ()


def test_one_domain_holds_out_as_much_text_as_several() -> None:
    assert slice_samples(1, 96, 256) == 16
    assert slice_samples(4, 96, 256) == 4
    assert slice_samples(1, 32, 256) == 8
    assert slice_samples(1, 2, 64) == 4
