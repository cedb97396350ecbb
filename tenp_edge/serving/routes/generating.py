"""From a request to a response, for every route that generates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import Response

from tenp_edge.serving.bodies import body_of
from tenp_edge.serving.jobs import GONE, Running, Stream, gone, whole
from tenp_edge.serving.preparing import Prepared
from tenp_edge.serving.request_log import ANSWER
from tenp_edge.serving.schemas.generation import GenerationRequest
from tenp_edge.serving.schemas.wording import parse
from tenp_edge.serving.service import Service

Wanted = TypeVar("Wanted", bound=GenerationRequest)
Made = TypeVar("Made")


def both(path: str) -> Iterator[str]:
    """``path``, which begins with /v1, with it and without."""
    yield path
    yield path.removeprefix("/v1")


def add(app: FastAPI, method: str, path: str, endpoint: Callable[..., Any]) -> None:
    """``endpoint`` answers ``path``, which begins with /v1, with it and without. What answers GET
    answers HEAD: watchers of servers ask so."""
    methods = [method, "HEAD"] if method == "GET" else [method]
    for spelled in both(path):
        app.add_api_route(spelled, endpoint, methods=methods, response_model=None)


def add_generating(
    app: FastAPI,
    service: Service,
    path: str,
    kind: type[Wanted],
    prepare: Callable[[Service, Wanted], Prepared],
) -> None:
    """POST ``path`` answers a ``kind`` with what `Prepared` jobs generate."""

    async def answer(request: Request) -> Response:
        payload = parse(kind, await body_of(request, service))
        return await generated(request, service, lambda: prepare(service, payload), payload.stream)

    add(app, "POST", path, answer)


async def generated(
    request: Request, service: Service, prepare: Callable[[], Prepared], stream: bool | None
) -> Response:
    """What the jobs that ``prepare`` makes generate. Raises RefusalError."""
    prepared = await _prepared(request, service, prepare)
    if prepared is None:
        return Response(status_code=GONE)
    request.scope[ANSWER] = prepared.answer
    running = Running(service, prepared)
    return Stream(running) if stream else await whole(request, running)


async def _prepared(
    request: Request, service: Service, prepare: Callable[[], Prepared]
) -> Prepared | None:
    """What is prepared, its place in the line taken; None where the client has left meanwhile.

    Raises RefusalError, at once where the line is full.
    """
    service.reserve()
    kept = False
    try:
        prepared = await in_thread(request, service, prepare)
        kept = prepared is not None
        return prepared
    finally:
        if not kept:
            service.worker.release()


async def in_thread(request: Request, service: Service, make: Callable[[], Made]) -> Made | None:
    """``make()`` in the thread that prepares; None where the client has left meanwhile."""
    submitted = service.preparing.submit(make)
    preparing: asyncio.Future[Any] = asyncio.wrap_future(submitted)
    left = asyncio.create_task(gone(request))
    try:
        await asyncio.wait((preparing, left), return_when=asyncio.FIRST_COMPLETED)
        return preparing.result() if preparing.done() else None
    finally:
        left.cancel()
        submitted.cancel()  # What the thread has not begun, it leaves; at once.
