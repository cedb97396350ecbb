"""How far a run of several stages is, in time: what was expected of each, corrected by what the
stages before really took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

# How far the measured pace may correct what was expected of later stages.
_FASTEST, _SLOWEST = 0.25, 10.0
_ENOUGH_SECONDS = 1.0


class RunCourse:
    """The stages of a run, from `expect` on; seconds by ``clock``."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._expected: dict[str, float] = {}
        self._names: frozenset[str] = frozenset()
        self._stage = ""
        self._start = self._stage_start = clock()
        self._done_expected = self._done_really = 0.0
        self._best_share = 0.0

    @property
    def known(self) -> bool:
        return bool(self._expected) or bool(self._stage)

    def expect(self, seconds: Mapping[str, float]) -> None:
        """The stages of the run; a verb that is a stage of another's run does not know the whole,
        and is not listened to."""
        if self._names:
            return
        self._expected, self._names = dict(seconds), frozenset(seconds)
        self._start = self._stage_start = self._clock()

    def begin(self, stage: str) -> None:
        if self._names and stage not in self._names:  # a part of the stage that runs
            return
        now = self._clock()
        if self._stage:
            self._done_really += now - self._stage_start
            self._done_expected += self._expected.pop(self._stage, 0.0)
        # What lies before it has been left out.
        while stage in self._expected and next(iter(self._expected)) != stage:
            del self._expected[next(iter(self._expected))]
        self._stage, self._stage_start = stage, now

    def leave_out(self, stage: str) -> None:
        """``stage`` takes no time."""
        self._expected.pop(stage, None)
        if self._stage == stage:
            self._stage = ""

    def left(self, task_share: float, task_seconds: float) -> float:
        """Seconds to the end of the run; the task that runs is at ``task_share`` (0..1) after
        ``task_seconds``."""
        pace = self._pace()
        later = sum(s for name, s in self._expected.items() if name != self._stage)
        spent = self._clock() - self._stage_start
        by_stage = self._expected.get(self._stage, 0.0) * pace - spent
        return max(by_stage, left_of_task(task_share, task_seconds)) + later * pace

    def share(self, left: float) -> float:
        """How much of the run's time is over (0..1), never less than it was said before."""
        spent = self._clock() - self._start
        now = spent / max(spent + left, 1e-9)
        self._best_share = max(self._best_share, min(now, 0.99))
        return self._best_share

    def _pace(self) -> float:
        if self._done_expected < _ENOUGH_SECONDS:
            return 1.0
        return min(max(self._done_really / self._done_expected, _FASTEST), _SLOWEST)


def left_of_task(share: float, seconds: float) -> float:
    """Seconds to its end of a task that is at ``share`` (0..1) after ``seconds``."""
    return seconds * (1 - share) / share if share > 0 else 0.0
