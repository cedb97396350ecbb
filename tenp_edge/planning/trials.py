"""Plans that were measured on held-out text: what they promised, and what they cost.

refine.json beside the statistics has them all, by the plan's digest, so that no plan is measured
twice on one text, and a killed run goes on where it was.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.disk import read_json, write_text

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
    """refine.json: every plan that was measured on one slice, by its digest."""

    def __init__(self, directory: Path, text: str) -> None:
        self.file = directory / FILE
        self._state: dict[str, Any] = {"version": VERSION, "slice": text, "plans": {}}
        if self.file.is_file():
            found = read_json(self.file)
            if found.get("version") == VERSION and found.get("slice") == text:
                self._state = found

    def get(self, plan: CompressionPlan) -> Trial | None:
        found = self._state["plans"].get(plan.digest)
        return None if found is None else Trial.from_json(found)

    def add(self, measured: Mapping[str, Trial]) -> None:
        self._state["plans"] |= {digest: trial.to_json() for digest, trial in measured.items()}
        write_text(self.file, json.dumps(self._state, indent=1) + "\n")


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
    known = {digest: records.get(plan) for digest, (_, plan) in candidates.items()}
    missing = [digest for digest, trial in known.items() if trial is None]
    started = time.monotonic()
    kls = measure([candidates[digest][1] for digest in missing]) if missing else []
    seconds = round((time.monotonic() - started) / max(len(missing), 1), 3)
    new = {
        digest: _trial(*candidates[digest], kl, seconds)
        for digest, kl in zip(missing, kls, strict=True)
    }
    if new:
        records.add(new)
    return {digest: trial for digest, trial in known.items() if trial is not None} | new


def _trial(changes: Changes, plan: CompressionPlan, kl: MeasuredKL, seconds: float) -> Trial:
    loss = plan.record.predicted_loss
    assert loss is not None, "plans that are measured name their neurons"
    return Trial(changes, plan.keep_ratio, loss, kl.mean, seconds, kl.sequences)


def load_trials(directory: Path, text: str | None) -> tuple[Trial, ...]:
    """Every plan that was measured in ``directory`` on the slice ``text`` (a digest); what an
    earlier calibration left there is not of this one. None is no error."""
    file = directory / FILE
    found = read_json(file) if text is not None and file.is_file() else {}
    if found.get("version") != VERSION or found.get("slice") != text:
        return ()
    return tuple(Trial.from_json(trial) for trial in found["plans"].values())
