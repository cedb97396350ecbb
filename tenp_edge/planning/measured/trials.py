"""Plans that were measured on held-out text: what they promised, and what they cost.

refine.json beside the statistics has them all, by the plan's digest, so that no plan is measured
twice on one text, and a killed run goes on where it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.resumable import JobRecord

FILE = "refine.json"
VERSION = 3

Changes = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """A measured plan. ``changes``: what its request had beside the plain one; ``mean_kl``: nats
    on the slice; ``seconds``: its share of the forward; ``sequence_kl``: nats of each sequence of
    the slice, for how sure a difference is."""

    changes: Mapping[str, Any]
    keep_ratio: float
    predicted_loss: float
    mean_kl: float
    seconds: float
    sequence_kl: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "changes": dict(self.changes)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Trial:
        return cls(**{**found, "sequence_kl": tuple(found["sequence_kl"])})


class Records:
    """refine.json: every plan that was measured on the slice ``text`` (a digest), by its digest."""

    def __init__(self, directory: Path, text: str) -> None:
        identity = {"version": VERSION, "slice": text}
        self._record = JobRecord(directory / FILE, identity, {"plans": {}})
        plans = self._record.state()["plans"]
        self.trials = {digest: Trial.from_json(trial) for digest, trial in plans.items()}

    def add(self, measured: Mapping[str, Trial]) -> None:
        self.trials |= measured
        self._record.write({"plans": {key: one.to_json() for key, one in self.trials.items()}})


@dataclass(frozen=True)
class MeasuredKL:
    """What a plan cost on a slice, nats per token: ``mean``, every domain weighing the same, and of
    each of its ``sequences``."""

    mean: float
    sequences: tuple[float, ...]


Candidates = Mapping[str, tuple[Changes, CompressionPlan]]
Measure = Callable[[Sequence[CompressionPlan]], list[MeasuredKL]]


def measured(candidates: Candidates, records: Records, measure: Measure) -> dict[str, Trial]:
    """A trial for every plan of ``candidates`` (digest -> changes and plan); what ``records`` does
    not know yet is measured in one go and added to it."""
    missing = [digest for digest in candidates if digest not in records.trials]
    started = time.monotonic()
    kls = measure([candidates[digest][1] for digest in missing]) if missing else []
    seconds = round((time.monotonic() - started) / max(len(missing), 1), 3)
    pairs = zip(missing, kls, strict=True)
    if missing:
        records.add({key: _trial(*candidates[key], kl, seconds) for key, kl in pairs})
    return {digest: records.trials[digest] for digest in candidates}


def _trial(changes: Changes, plan: CompressionPlan, kl: MeasuredKL, seconds: float) -> Trial:
    loss = plan.record.predicted_loss
    assert loss is not None, "plans that are measured name their neurons"
    return Trial(changes, plan.keep_ratio, loss, kl.mean, seconds, kl.sequences)


def load_trials(directory: Path, text: str | None) -> tuple[Trial, ...]:
    """Every plan that was measured in ``directory`` on the slice ``text`` (a digest); what an
    earlier calibration left there is not of this one. None is no error."""
    return () if text is None else tuple(Records(directory, text).trials.values())
