"""The one thread that uses the model, and the bounded line in front of it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tenp_edge.errors import UserError
from tenp_edge.runtime.generation import Piece, generate
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.session import Session
from tenp_edge.serving.refusal import RefusalError
from tenp_edge.serving.stops import until_stop

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What to generate: checked, so that the model will not refuse it."""

    prompt: tuple[int, ...]
    sampling: SamplingOptions
    max_tokens: int
    stops: tuple[str, ...] = ()


class Job:
    """Work in the line. ``deliver`` is called from the worker's thread: a `Piece` per token, or
    the exception that ended it."""

    def __init__(self, work: Work, deliver: Callable[[Piece | Exception], None]) -> None:
        self.work, self.deliver = work, deliver
        self.cancelled = False


class LineFullError(Exception):
    """As many requests wait as may."""


class Worker:
    """Generates for one job after the other. At most ``waiting`` jobs wait for the running one.

    A place in the line is reserved before the work is prepared, so that what waits to be prepared
    counts too; `submit` puts the job there, `release` gives the place back.
    """

    def __init__(self, session: Session, waiting: int) -> None:
        self._session, self._most = session, waiting
        self._line: deque[Job] = deque()
        self._running: Job | None = None
        self._reserved = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="tenp-edge-worker", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> tuple[int, int]:
        """(running, waiting) jobs; one that is being prepared waits."""
        with self._changed:
            return int(self._running is not None), len(self._line) + self._reserved

    def reserve(self) -> None:
        """Take a place in the line; raises LineFullError."""
        with self._changed:
            taken = self._reserved + len(self._line) + int(self._running is not None)
            if self._closed or taken > self._most:
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
            if job in self._line:
                self._line.remove(job)

    def stop(self) -> None:
        """Take nothing more; every job that is not complete is refused (503)."""
        with self._changed:
            self._closed = True
            dropped = list(self._line)
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
        while (job := self._next()) is not None:
            try:
                self._generate(job)
            except UserError as error:  # The model's fault, not the request's: one line tells it.
                self._session.reset()
                job.deliver(RefusalError(500, error.message, "model_failed"))
            except Exception as error:
                # A bug in one answer is no reason to refuse the next: it may not touch the cache.
                _log.exception("a request failed")
                self._session.reset()
                job.deliver(error)
            finally:
                self._retire()

    def _retire(self) -> None:
        with self._changed:
            self._running = None

    def _next(self) -> Job | None:
        with self._changed:
            while not self._line and not self._closed:
                self._changed.wait()
            self._running = self._line.popleft() if self._line else None
            return self._running

    def _generate(self, job: Job) -> None:
        work = job.work
        if not self._prefill(job):
            return
        pieces = generate(self._session, work.prompt, work.sampling, work.max_tokens)
        for piece in until_stop(pieces, work.stops):
            if self._ends(job):
                return
            if piece.finish is not None:
                self._retire()  # Before its client can ask again: it must not find itself in line.
            job.deliver(piece)

    def _prefill(self, job: Job) -> bool:
        """Evaluate the prompt's full batches, so that a cancelled job need not wait for all of
        them; `generate` finds them in the cache and does the last one. False: cancelled."""
        prompt, size = job.work.prompt, self._session.batch_tokens
        done = self._session.keep_shared(prompt)
        while not (ends := self._ends(job)) and len(prompt) - done > size:
            self._session.evaluate(prompt[done : done + size])
            done += size
        return not ends

    def _ends(self, job: Job) -> bool:
        """Whether ``job`` ends here: nobody wants it, or the server is going down."""
        if self._closed:
            job.deliver(_going_down())
        return self._closed or job.cancelled


def _going_down() -> RefusalError:
    return RefusalError(503, "the server is going down", "going_down")
