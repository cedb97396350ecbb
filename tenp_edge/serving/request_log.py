"""A line for every request: what it was, how it ended, what it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tenp_edge.serving.answers.answer import Answer
from tenp_edge.serving.jobs import GONE
from tenp_edge.serving.metrics import Metrics

# Where a request's answer is kept while it is made.
ANSWER = "tenp_edge_answer"
_PATH_SHOWN = 120


class RequestLog:
    """Counts every request in ``metrics``, and has ``write`` write a line of it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, write: Callable[[str], None] | None) -> None:
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
                self._write(_line(scope, status, seconds))


def _line(scope: Scope, status: int, seconds: float) -> str:
    path = ascii(scope["path"])[1:-1][:_PATH_SHOWN]
    now = datetime.now().strftime("%H:%M:%S")
    line = f"{now} {scope['method']} {path} {status} in {1000 * seconds:.0f} ms"
    answer = scope.get(ANSWER)
    if not isinstance(answer, Answer):
        return line
    usage = answer.usage
    counts = f"{usage.prompt_tokens} + {usage.tokens} tokens"
    return f"{line}, {counts}, {usage.tokens_per_second:.1f} tokens/s"
