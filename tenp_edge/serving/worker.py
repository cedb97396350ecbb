"""The one thread that uses the model, and the bounded line in front of it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass, replace

from tenp_edge.errors import UserError
from tenp_edge.runtime.generation import Piece
from tenp_edge.runtime.grammars import GrammarError
from tenp_edge.runtime.session import Session
from tenp_edge.serving.refusal import RefusalError
from tenp_edge.serving.scheduler import Item, Job, Run, Scheduler, SlotStatus, Told, Totals, Work

_log = logging.getLogger(__name__)

__all__ = ["Item", "Job", "LineFullError", "SlotStatus", "Status", "Told", "Work", "Worker"]


class LineFullError(Exception):
    """As many requests wait as may."""


@dataclass(frozen=True)
class Status:
    """What the worker does now, and did since it began."""

    slots: tuple[SlotStatus, ...]
    totals: Totals


class Worker:
    """Generates for as many jobs at a time as the session has slots. At most ``waiting`` wait.

    A place in the line is reserved before the work is prepared, so that what waits to be prepared
    counts too; `submit` puts the jobs there, `release` gives the place back.
    """

    def __init__(self, session: Session, waiting: int) -> None:
        self._session, self._most = session, waiting + len(session.slots)
        self._scheduler = Scheduler(session)
        self._line: deque[Job | Run] = deque()
        self._running: set[Job] = set()
        self._reserved = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="tenp-edge-worker", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> tuple[int, int]:
        """(running, waiting) jobs; one that is being prepared waits."""
        with self._changed:
            return len(self._running), len(self._line) + self._reserved

    def status(self) -> Status:
        """For people who watch: read while the worker goes on."""
        return Status(self._scheduler.status(), replace(self._scheduler.totals))

    def reserve(self) -> None:
        """Take a place in the line; raises LineFullError."""
        with self._changed:
            taken = self._reserved + len(self._line) + len(self._running)
            if self._closed or taken >= self._most:
                raise LineFullError
            self._reserved += 1

    def release(self) -> None:
        """Give a reserved place back."""
        with self._changed:
            self._reserved -= 1

    def submit(self, *jobs: Job) -> None:
        """Put the ``jobs`` of a request into the line, at the place that was reserved for it."""
        with self._changed:
            self._reserved -= 1
            if not self._closed:
                self._line.extend(jobs)
                self._changed.notify()
                return
        for job in jobs:
            job.deliver(_going_down())

    def cancel(self, job: Job) -> None:
        """Nobody wants ``job`` any more: it leaves the line, or ends with the next token."""
        with self._changed:
            job.cancelled = True
            self._line = deque(item for item in self._line if _job(item) is not job)

    def stop(self) -> None:
        """Take nothing more; every job that is not complete is refused (503)."""
        with self._changed:
            self._closed = True
            dropped = [_job(item) for item in self._line]
            self._line.clear()
            self._changed.notify()
        for job in dropped:
            job.deliver(_going_down())

    def close(self) -> None:
        """`stop`, and wait for the thread."""
        self.stop()
        self._thread.join()

    # -- the thread ----------------------------------------------------------------------------

    def _work(self) -> None:
        while self._wait():
            try:
                self._admit()
                self._drop_cancelled()
                self._step()
            except Exception as error:
                # A bug is no reason to refuse the next: it may not touch what these left behind.
                self._fail_all(error)
        for run in self._scheduler.runs:
            self._end(run, _going_down())

    def _wait(self) -> bool:
        """Until there is something to do; False when the server is going down."""
        with self._changed:
            while not self._line and not self._running and not self._closed:
                self._changed.wait()
            return not self._closed

    def _admit(self) -> None:
        """Begin with as many of the line as have a slot and room, in its order."""
        while (job := self._next()) is not None:
            item, run = job, None
            try:
                run = item if isinstance(item, Run) else Run(item, self._session)
                admitted = self._scheduler.admit(run)
            except Exception as error:
                self._refuse(_job(item), error)
                continue
            if not admitted:
                self._put_back(run)
                return

    def _next(self) -> Job | Run | None:
        with self._changed:
            if not self._line or len(self._running) == len(self._session.slots):
                return None
            item = self._line.popleft()
            self._running.add(_job(item))
            return item

    def _put_back(self, run: Run) -> None:
        """To the head of the line; a job that nobody wants any more ends here."""
        with self._changed:
            self._running.discard(run.job)
            if not run.job.cancelled:
                self._line.appendleft(run)

    def _drop_cancelled(self) -> None:
        for run in self._scheduler.runs:
            if run.job.cancelled:
                self._end(run, None)

    def _step(self) -> None:
        scheduler = self._scheduler
        if not scheduler.runs:
            return
        for run in scheduler.make_room():
            self._put_back(run)
        for run, result in scheduler.step():
            if isinstance(result, Exception):
                self._scheduler.fail(run)
                self._refuse(run.job, result)
            elif not isinstance(result, Told) and result.finish is not None:
                self._end(run, result)
            elif not run.job.cancelled:
                run.job.deliver(result)

    def _end(self, run: Run, last: Piece | Exception | None) -> None:
        """Before its client can ask again: it must not find itself in line."""
        self._scheduler.end(run)
        self._retire(run.job)
        if last is not None and not run.job.cancelled:
            run.job.deliver(last)

    def _fail_all(self, error: Exception) -> None:
        """What a batch fails of, all of it fails of."""
        for run in self._scheduler.runs:
            self._scheduler.fail(run)
            self._refuse(run.job, error)

    def _refuse(self, job: Job, error: Exception) -> None:
        self._retire(job)
        if isinstance(error, GrammarError):
            error = RefusalError.of(error, 400, "invalid_grammar", "grammar")
        elif isinstance(error, UserError):  # The model's fault: one line tells it.
            error = RefusalError.of(error, 500, "model_failed")
        elif not isinstance(error, RefusalError):
            _log.error("a request failed", exc_info=error)
        job.deliver(error)

    def _retire(self, job: Job) -> None:
        with self._changed:
            self._running.discard(job)


def _job(item: Job | Run) -> Job:
    return item.job if isinstance(item, Run) else item


def _going_down() -> RefusalError:
    return RefusalError(503, "the server is going down", "going_down")
