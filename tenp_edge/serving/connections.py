"""Connections that say nothing: how many there may be, and for how long.

uvicorn keeps a connection that never sends a request, and takes as many as the system gives; then
every other client waits. Here an idle connection has a deadline, and where there are as many as may
be, the one that has been idle longest makes room for the next.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from pathlib import Path
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_log = logging.getLogger(__name__)
# asyncio accepts up to this many connections a tick, and three times so before the first that is
# one too many closes a file: its tick, one in which a task makes the transport, one in which the
# protocol hears of it and closes another. The fourth part is for what else is opened meanwhile.
BACKLOG = 32
_SPARE_FILES = 4 * BACKLOG
_FEWEST = 8
_QUIET_SECONDS = 60.0


def protocol_class(max_connections: int, header_seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, with at most ``max_connections``, each of which has sent the head of a
    request ``header_seconds`` after it came or had its last answer."""
    idle: dict[Connection, None] = {}  # a dict keeps its order: the longest idle first

    class Connection(H11Protocol):
        deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._note()
            if len(self.connections) > max_connections:
                next(iter(idle)).leave()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._note()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._note()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._forget()

        def _note(self) -> None:
            """Whether it is idle now."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget()
            elif self not in idle and not self.transport.is_closing():
                idle[self] = None
                self.deadline = self.loop.call_later(header_seconds, self.leave)

        def _forget(self) -> None:
            idle.pop(self, None)
            if self.deadline is not None:
                self.deadline.cancel()

        def leave(self) -> None:
            """Close an idle connection."""
            self._forget()
            self.connections.discard(self)
            self.transport.close()

    return Connection


def affordable(wanted: int) -> int:
    """``wanted`` connections, or as many as the limit of open files leaves room for."""
    if sys.platform == "win32":
        return wanted
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return wanted
    return max(_FEWEST, min(wanted, limit - _open_files() - _SPARE_FILES))


def _open_files() -> int:
    listed = Path("/dev/fd")
    return sum(1 for _ in listed.iterdir()) if listed.is_dir() else 64


class QuietHandler:
    """asyncio's errors as one line each, a kind at most once a minute.

    Where files run out it reports every connection that it cannot accept, with a traceback, in a
    loop: a million lines a minute.
    """

    def __init__(self) -> None:
        self._said: dict[str, float] = {}

    def __call__(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message, now = str(context.get("message")), time.monotonic()
        if now - self._said.get(message, -_QUIET_SECONDS) < _QUIET_SECONDS:
            return
        self._said[message] = now
        error = context.get("exception")
        _log.error("%s%s", message, "" if error is None else f" ({error})")
