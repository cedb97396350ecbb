"""How width is best shared out in this model: a few ways, measured at a few sizes on held-out text.

Predicted losses order the neurons and rank plans well, but one thing differs from model to model:
in which unit losses of different layers are compared (models that were trained little want
energies at deep cuts), and whether layers may be compared at all. So a few ways are measured, once
a calibration, and every plan made from it takes the one that was best near its size. What was
measured also says what a predicted loss means in nats for this very model (`frontier`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import stdev

from tenp_edge.errors import UserError
from tenp_edge.plan import CompressionPlan
from tenp_edge.request import DEFAULT_PROTECTION, PlanRequest
from tenp_edge.saliency import JOINT
from tenp_edge.trials import Candidates, Changes, Measure, Records, Trial, measured

MakePlan = Callable[[PlanRequest], CompressionPlan]

KEEPS = (0.9, 0.7, 0.45)
# What the request leaves open, spelled out, so that a probe is not itself planned by probes.
PLAIN: Changes = {
    "unit": 0.0,
    "ranking": "global",
    "neuron_score": JOINT,
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
# What another way must gain: the plain plan is right most often.
MARGIN = 0.02
# How far apart two ways usually are, as log(KL / KL): a difference that the text leaves as unsure
# as this counts half.
_USUAL = 0.1
# A plan of these was not measured in any way.
_PINS = (*PLAIN, "tilt")
_NEAR = 0.03  # of keep: legal widths round a plan's size


def probe(make: MakePlan, records: Records, measure: Measure, seed: int) -> None:
    """Measure WAYS at KEEPS into ``records``, all of a size at once; known ones are not repeated.

    ``make`` plans a request from the statistics of the text beside which ``records`` lie.
    """
    for keep in KEEPS:
        try:
            candidates = _candidates(make, keep, seed)
        except UserError:  # experts too narrow to be cut so far: no plan will ever be that small
            continue
        measured(candidates, records, measure)


def _candidates(make: MakePlan, keep: float, seed: int) -> Candidates:
    """The plans of one size by their digests; of two equal ones the way that comes first."""
    plain = PlanRequest(keep=keep, method="adaptive", seed=seed)
    found: dict[str, tuple[Changes, CompressionPlan]] = {}
    for way in WAYS:
        plan = make(replace(plain, **way))
        found.setdefault(plan.digest, (way, plan))
    return found


def best_way(trials: Sequence[Trial], request: PlanRequest, keep: float) -> Changes:
    """What to change in ``request`` for a plan of size ``keep``: the way that measured best there.

    KL of a way beside the plain plan's is interpolated between KEEPS as a logarithm. Nothing where
    the request is not for the default method, or pins what ways differ in.
    """
    pinned = request.guards or any(getattr(request, name) is not None for name in _PINS)
    if request.method != "adaptive" or pinned:
        return {}
    gains = [(_log_ratio(trials, way, keep), way) for way in WAYS[1:]]
    ratio, way = min(gains, key=lambda gain: gain[0])
    return way if ratio < math.log(1 - MARGIN) else {}


def _log_ratio(trials: Sequence[Trial], way: Changes, keep: float) -> float:
    """log(KL of ``way`` / KL of the plain plan) at ``keep``; 0 at sizes where they are one plan."""
    known = [(size, _log_ratio_at(trials, way, size)) for size in sorted(KEEPS)]
    keep = min(max(keep, known[0][0]), known[-1][0])
    for (small, low), (large, high) in pairwise(known):
        if keep <= large:
            part = (keep - small) / (large - small)
            return (1 - part) * low + part * high
    raise AssertionError("keep lies between the sizes")


def _log_ratio_at(trials: Sequence[Trial], way: Changes, size: float) -> float:
    """What is most likely, given how the sequences disagree: a normal prior of width _USUAL."""
    own, plain = (_trial_of(trials, changes, size) for changes in (way, PLAIN))
    if own is None or plain is None or not own.mean_kl > 0 or not plain.mean_kl > 0:
        return 0.0
    ratio = math.log(own.mean_kl / plain.mean_kl)
    return ratio * _USUAL**2 / (_USUAL**2 + _unsure(own, plain) ** 2)


def _trial_of(trials: Sequence[Trial], changes: Changes, size: float) -> Trial | None:
    near = (trial for trial in trials if abs(trial.keep_ratio - size) < _NEAR)
    return next((trial for trial in near if trial.changes == changes), None)


def _unsure(own: Trial, plain: Trial) -> float:
    """Standard error of log(KL of ``own`` / KL of ``plain``), from the sequences in pairs."""
    pairs = zip(own.sequence_kl, plain.sequence_kl, strict=True)
    shares = [(first - second) / plain.mean_kl for first, second in pairs]
    return stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0
