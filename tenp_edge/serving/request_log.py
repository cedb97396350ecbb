"""A line for every request: what it was, how it ended, what it took."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenp_edge.serving.answers.answer import Answer
from tenp_edge.serving.answers.choice import Usage
from tenp_edge.serving.jobs import GONE
from tenp_edge.serving.metrics import Metrics

# Where a request's answer is kept while it is made.
ANSWER = "tenp_edge_answer"
_PATH_SHOWN = 120
_FIELDS = ("time", "method", "path", "status", "milliseconds")


@dataclass(frozen=True)
class LoggedRequest:
    """A request that has ended; ``usage`` where it had an answer."""

    time: str
    method: str
    path: str
    status: int
    milliseconds: int
    usage: Usage | None

    def __str__(self) -> str:
        line = f"{self.time} {self.method} {self.path} {self.status} in {self.milliseconds} ms"
        usage = self.usage
        if usage is None:
            return line
        counts = f"{usage.prompt_tokens} + {usage.tokens} tokens"
        return f"{line}, {counts}, {usage.tokens_per_second:.1f} tokens/s"

    def json(self) -> str:
        """The same for programs."""
        record = {field: getattr(self, field) for field in _FIELDS}
        if self.usage is not None:
            record |= {"usage": self.usage.openai(), "timings": self.usage.timings()}
        return json.dumps(record)


class RequestLog:
    """Counts every request in ``metrics``, and has ``write`` write it down."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, write: Callable[[LoggedRequest], None] | None
    ) -> None:
        self._app, self._metrics, self._write = app, metrics, write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), GONE  # as long as nothing is sent

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            self._note(scope, status, time.monotonic() - begun)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        self._metrics.requested(getattr(route, "path", "other"), status)
        if self._write is not None:
            with suppress(OSError):  # Nobody reads stderr any more.
                self._write(_logged(scope, status, seconds))


def _logged(scope: Scope, status: int, seconds: float) -> LoggedRequest:
    answer = scope.get(ANSWER)
    return LoggedRequest(
        datetime.now().strftime("%H:%M:%S"),
        scope["method"],
        ascii(scope["path"])[1:-1][:_PATH_SHOWN],
        status,
        round(1000 * seconds),
        answer.usage if isinstance(answer, Answer) else None,
    )
