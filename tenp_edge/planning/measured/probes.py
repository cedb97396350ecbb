"""How width is best shared out in this model: a few ways, measured at a few sizes on held-out text.

Predicted losses order the neurons and rank plans well, but one thing differs from model to model:
in which unit losses of different layers are compared (models that were trained little want
energies at deep cuts), and whether layers may be compared at all. So a few ways are measured, once
a calibration, and every plan made from it takes the one that was best near its size. What was
measured also says what a predicted loss means in nats for this very model (`kl_law`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from operator import itemgetter
from statistics import stdev

import numpy as np

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.errors import UserError
from tenp_edge.planning.measured.trials import (
    Candidates,
    Changes,
    Measure,
    Records,
    Trial,
    measured,
)
from tenp_edge.planning.options.methods import method_named
from tenp_edge.planning.options.spec import DEFAULT_PROTECTION, PlanOptions

MakePlan = Callable[[PlanOptions], CompressionPlan]

KEEPS = (0.9, 0.7, 0.45)
# What options leave open, spelled out, so that a probe is not itself planned by probes.
PLAIN: Changes = {
    "unit": 0.0,
    "ranking": "global",
    "neuron_score": "joint",
    "protect": DEFAULT_PROTECTION,
}
# Beside it: losses in other units of the layers' streams, even budgets for all layers, and neurons
# that the text did not need cut in the order of their weights.
WAYS: tuple[Changes, ...] = (
    PLAIN,
    {**PLAIN, "unit": 1.0},
    {**PLAIN, "unit": 2.0},
    {**PLAIN, "ranking": "layer"},
    {**PLAIN, "neuron_score": "joint-insured"},
)
# What another way must gain: the plain plan is right most often. A share, and nats per token: less
# is nothing that anybody notices, and below it the text decides by a few of its tokens.
MARGIN = 0.02
NOTICED = 1e-4
# How far apart two ways usually are, as log(KL / KL): a difference that the text leaves as unsure
# as this counts half.
_USUAL = 0.1
# A plan of these was not measured in any way.
_PINS = (*PLAIN, "tilt")
_NEAR = 0.03  # of keep: legal widths round a plan's size


def probe(make: MakePlan, records: Records, measure: Measure, seed: int) -> None:
    """Measure WAYS at KEEPS into ``records``, all of a size at once; known ones are not repeated.

    ``make`` plans options from the statistics of the text beside which ``records`` lie.
    """
    for keep in KEEPS:
        try:
            candidates = _candidates(make, keep, seed)
        except UserError:  # experts too narrow to be cut so far: no plan will ever be that small
            continue
        measured(candidates, records, measure)


def plain_plans(make: MakePlan, seed: int = 0) -> list[CompressionPlan]:
    """The plain plan at each of KEEPS; experts that are too narrow have fewer."""
    plans = []
    for keep in KEEPS:
        try:
            plans.append(make(replace(PlanOptions(keep=keep, seed=seed), **PLAIN)))
        except UserError:
            continue
    return plans


def _candidates(make: MakePlan, keep: float, seed: int) -> Candidates:
    """The plans of one size by their digests; of two equal ones the way that comes first."""
    plain = PlanOptions(keep=keep, seed=seed)
    candidates: dict[str, tuple[Changes, CompressionPlan]] = {}
    for way in WAYS:
        plan = make(replace(plain, **way))
        candidates.setdefault(plan.digest, (way, plan))
    return candidates


def best_way(trials: Sequence[Trial], options: PlanOptions, keep: float) -> Changes:
    """What to change in ``options`` for a plan of size ``keep``: the way that measured best there.

    KL, and KL beside the plain plan's, are interpolated between KEEPS as logarithms. Nothing where
    the options are not for the default method, or pin what ways differ in.
    """
    pinned = options.guards or any(getattr(options, name) is not None for name in _PINS)
    if not method_named(options.method).probed or pinned:
        return {}
    plain = {size: _trial_of(trials, PLAIN, size) for size in KEEPS}
    costs = {size: trial.mean_kl for size, trial in plain.items() if trial and trial.mean_kl > 0}
    if not costs:
        return {}
    by_way = [({size: _log_ratio(trials, way, size) for size in costs}, way) for way in WAYS[1:]]
    ratio, way = min(((_between(ratios, keep), way) for ratios, way in by_way), key=itemgetter(0))
    cost = math.exp(_between({size: math.log(kl) for size, kl in costs.items()}, keep))
    wins = ratio < math.log(1 - MARGIN) and cost * -math.expm1(ratio) > NOTICED
    return way if wins else {}


def _between(values: Mapping[float, float], keep: float) -> float:
    """Of values by size that at ``keep``: interpolated, the nearest one outside of them."""
    sizes = sorted(values)
    return float(np.interp(keep, sizes, [values[size] for size in sizes]))


def _log_ratio(trials: Sequence[Trial], way: Changes, size: float) -> float:
    """log(KL of ``way`` / KL of the plain plan), 0 where they are one plan. What is most likely,
    given how the sequences disagree: a normal prior of width _USUAL."""
    trial, plain = (_trial_of(trials, changes, size) for changes in (way, PLAIN))
    if trial is None or plain is None or not trial.mean_kl > 0 or not plain.mean_kl > 0:
        return 0.0
    ratio = math.log(trial.mean_kl / plain.mean_kl)
    return ratio * _USUAL**2 / (_USUAL**2 + _unsure(trial, plain) ** 2)


def _trial_of(trials: Sequence[Trial], changes: Changes, size: float) -> Trial | None:
    near = (trial for trial in trials if abs(trial.keep_ratio - size) < _NEAR)
    return next((trial for trial in near if trial.changes == changes), None)


def _unsure(trial: Trial, plain: Trial) -> float:
    """Standard error of log(KL of ``trial`` / KL of ``plain``), from the sequences in pairs."""
    pairs = zip(trial.sequence_kl, plain.sequence_kl, strict=True)
    shares = [(first - second) / plain.mean_kl for first, second in pairs]
    return stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0
