"""`plan --refine`: the method's knobs chosen by measured KL on a held-out slice of the text.

A knob is tried at all its values in one forward (`evaluator`), the best value stays, then comes the
next knob. Every measured plan is recorded in refine.json beside the statistics, so a killed run
goes on where it was and the same plan is never measured twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tenp_edge.calibration.held_out import load_slice, slice_digest, stored_slice
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.evaluation.evaluator import LayerCache
from tenp_edge.evaluation.measured_variants import measure_variants
from tenp_edge.evaluation.variants import Planned
from tenp_edge.forward.text_batch import Domain
from tenp_edge.planning.measured.trials import (
    Changes,
    Measure,
    MeasuredKL,
    Records,
    Trial,
    load_trials,
    measured,
)
from tenp_edge.planning.options.methods import Axes, method_named
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.progress import QUIET, Progress

MakePlan = Callable[[PlanOptions], CompressionPlan]


def knobs(options: PlanOptions, keep: float) -> Axes:
    """What is tried for the options' method, in this order; a pinned value is not a knob."""
    return [
        values
        for values in method_named(options.method).axes(keep)
        if all(getattr(options, name) is None for name in values[0])
    ]


def known_trials(directory: Path) -> tuple[Trial, ...]:
    """The plans that were measured on the very slice that is in ``directory``."""
    return load_trials(directory, stored_slice(directory))


def refine(
    checkpoint: Checkpoint,
    options: PlanOptions,
    make: MakePlan,
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress = QUIET,
) -> CompressionPlan:
    """The plan with the least measured KL over the method's knobs; ``make`` plans the options.

    The last call of ``make`` asks for the chosen plan again, with its frontier: by then
    its trials are known.

    ``directory``: the statistics with their slice; refine.json is kept there. Raises UserError
    when the method has no knob left or there is no slice.
    """
    domains = load_slice(directory)
    options = replace(options, frontier=False)
    started, first = time.monotonic(), make(options)
    if first.keep_ratio == 1.0:
        return first
    axes = knobs(options, first.keep_ratio)
    if not axes:
        raise UserError(
            f"--method {options.method} has nothing to refine here", "leave --refine out"
        )
    records = Records(directory, slice_digest(domains))

    measure = measure_on(
        checkpoint, domains, directory, device=device, dtype=dtype, progress=progress
    )
    best, trials = _descend(options, first, axes, make, records, measure)
    chosen = make(replace(options, **trials[best.digest].changes, frontier=True))
    return _with_record(chosen, trials, time.monotonic() - started)


def measure_on(
    checkpoint: Checkpoint,
    domains: Sequence[Domain],
    work: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress = QUIET,
) -> Measure:
    """What measures plans together on ``domains``."""

    def measure(plans: Sequence[CompressionPlan]) -> list[MeasuredKL]:
        measured = measure_variants(
            LayerCache(checkpoint.path),
            [Planned(plan) for plan in plans],
            domains,
            device=device,
            dtype=dtype,
            work=work,
            progress=progress,
        )
        return [MeasuredKL(one.mean_kl, one.sequence_kl) for one in measured]

    return measure


def _descend(
    options: PlanOptions,
    first: CompressionPlan,
    axes: Sequence[Sequence[Changes]],
    make: MakePlan,
    records: Records,
    measure: Measure,
) -> tuple[CompressionPlan, dict[str, Trial]]:
    """One knob after the other; the plan without any change competes too."""
    best, chosen = first, Changes()
    trials: dict[str, Trial] = {}
    for values in axes:
        candidates = {best.digest: (chosen, best)}
        for value in values:
            plan = make(replace(options, **chosen, **value))
            candidates.setdefault(plan.digest, ({**chosen, **value}, plan))
        trials |= measured(candidates, records, measure)
        winner = min(candidates, key=lambda digest: trials[digest].mean_kl)
        chosen, best = candidates[winner]
    return best, trials


def _with_record(
    plan: CompressionPlan, trials: Mapping[str, Trial], seconds: float
) -> CompressionPlan:
    """``plan`` with what was tried, best first."""
    tried = sorted(trials.values(), key=lambda trial: trial.mean_kl)
    refined = {
        "measured_kl": trials[plan.digest].mean_kl,
        "seconds": round(seconds, 1),
        "tried": [trial.to_json() for trial in tried],
    }
    chosen_by = "measured KL on held-out text"
    return replace(plan, record=replace(plan.record, chosen_by=chosen_by, refined=refined))
