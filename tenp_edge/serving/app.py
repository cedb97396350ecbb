"""The HTTP of the server: routes, bodies, streams, and clients that go away.

Every endpoint runs on the event loop. One more thread tokenises prompts, so that a long one stops
neither the loop nor the worker.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from tenp_edge.runtime.generation import Piece
from tenp_edge.serving.answers import DONE, Answer, event
from tenp_edge.serving.refusal import RefusalError, error_body
from tenp_edge.serving.schemas import ChatRequest, CompletionRequest, GenerationRequest, parse
from tenp_edge.serving.service import Service
from tenp_edge.serving.worker import Job, Work

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# A Host header: a name or an address in brackets, and a port. Anything else (a user, a path) is no
# browser's.
_HOST = re.compile(r"(?:\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[a-z0-9.-]+))(?::\d{1,5})?", re.I)
_NAME_SHOWN = 80
_GONE = 499  # Nobody reads it.


def create_app(service: Service, *, local_name: str | None) -> FastAPI:
    """The application. With a ``local_name``, the loopback address it listens on, it answers only
    to the names of this machine: a web page whose own name was pointed at 127.0.0.1 (DNS rebinding)
    must not reach the model."""
    # FastAPI's documentation pages load scripts from elsewhere; an offline server has none.
    guards = [] if local_name is None else [Depends(_foreign_names_refused(local_name))]
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=guards)
    app.add_exception_handler(RefusalError, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _failed)
    _add_facts(app, service)

    async def answer(request: Request, kind: type[GenerationRequest]) -> Response:
        payload = parse(kind, await _body(request, service))
        work = await _prepared(request, service, payload)
        if work is None:
            return Response(status_code=_GONE)
        with_usage = bool(payload.stream_options and payload.stream_options.include_usage)
        made = Answer(service.name, len(work.prompt), kind is ChatRequest, with_usage)
        generation = Generation(service, work)
        if payload.stream:
            return _Stream(generation, made, with_usage)
        return await _whole(request, generation, made)

    @app.post("/v1/completions", response_model=None)
    async def completions(request: Request) -> Response:
        return await answer(request, CompletionRequest)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat_completions(request: Request) -> Response:
        return await answer(request, ChatRequest)

    return app


def _add_facts(app: FastAPI, service: Service) -> None:
    """The routes that only tell what is served."""
    model = {
        "id": service.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "tenp-edge",
        "meta": {"runtime": service.runtime, "n_ctx": service.context},
    }

    @app.get("/health")
    async def health() -> dict[str, Any]:
        running, waiting = service.worker.counts
        return {"status": "ok", "running": running, "waiting": waiting}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> dict[str, Any]:
        service.check_name(name)
        return model


class Generation:
    """A job's pieces on the event loop. `cancel` it when nobody reads them any more."""

    def __init__(self, service: Service, work: Work) -> None:
        self._service, self._loop = service, asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._job = Job(work, self._deliver)
        service.worker.submit(self._job)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Every token as it is generated; raises what ended the job."""
        finished = False
        while not finished:
            item = await self._inbox.get()
            if isinstance(item, Exception):
                raise item
            yield item
            finished = item.finish is not None
            # Pieces that are there already must not keep the loop from seeing the client leave.
            await asyncio.sleep(0)

    def cancel(self) -> None:
        """Free the model for others; harmless for a job that has ended."""
        self._service.worker.cancel(self._job)

    def _deliver(self, item: Piece | Exception) -> None:
        """Called in the worker's thread."""
        try:
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, item)
        except RuntimeError:  # The loop was closed: the server is going down.
            self._job.cancelled = True


class _Stream(StreamingResponse):
    """Server-sent events, one per token; the job ends with the response, however that ends."""

    def __init__(self, generation: Generation, answer: Answer, with_usage: bool) -> None:
        self._generation = generation
        super().__init__(
            _events(generation, answer, with_usage),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._generation.cancel()


async def _events(generation: Generation, answer: Answer, with_usage: bool) -> AsyncIterator[str]:
    try:
        async for piece in generation.pieces():
            answer.add(piece)
            yield event(answer.chunk(piece))
    except RefusalError as error:
        yield event(error.body)
        return
    except Exception as error:  # The status line is gone; the worker has logged the traceback.
        yield event(error_body(500, f"the generation failed ({type(error).__name__})"))
        return
    if with_usage:
        yield event(answer.usage_chunk())
    yield DONE


async def _whole(request: Request, generation: Generation, answer: Answer) -> Response:
    """The answer in one piece, unless the client goes away before it is complete."""

    async def collect() -> None:
        async for piece in generation.pieces():
            answer.add(piece)

    tasks = [asyncio.create_task(collect()), asyncio.create_task(_gone(request))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            return Response(status_code=_GONE)
        tasks[0].result()
        return JSONResponse(answer.whole())
    finally:
        generation.cancel()
        for task in tasks:
            task.cancel()


async def _prepared(request: Request, service: Service, wanted: GenerationRequest) -> Work | None:
    """``wanted`` as work, its place in the line taken; None where the client has left meanwhile.

    Raises RefusalError, at once where the line is full.
    """
    service.reserve()
    kept = False
    try:
        preparing = asyncio.wrap_future(service.preparing.submit(service.work, wanted))
        gone = asyncio.create_task(_gone(request))
        try:
            await asyncio.wait((preparing, gone), return_when=asyncio.FIRST_COMPLETED)
            if not preparing.done():
                return None
            work = preparing.result()
            kept = True
            return work
        finally:
            gone.cancel()
            preparing.cancel()  # What the thread has not begun, it leaves.
    finally:
        if not kept:
            service.worker.release()


async def _gone(request: Request) -> None:
    """Until the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request, service: Service) -> bytes:
    """The body, of at most the limit's bytes and in at most its time."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also keeps web pages out: a browser asks before it sends JSON to another site.
        raise RefusalError(415, f"the content type is '{kind}', not application/json")
    max_bytes = service.limits.body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(service.limits.body_seconds):
            async for chunk in request.stream():
                service.hold(len(chunk))
                body += chunk
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        seconds = service.limits.body_seconds
        raise RefusalError(408, f"the body did not arrive within {seconds:g} seconds") from None
    finally:
        service.hold(-len(body))
    return bytes(body)


def _too_large(max_bytes: int) -> RefusalError:
    return RefusalError(413, f"the body is larger than {max_bytes} bytes", "body_too_large")


def _foreign_names_refused(local_name: str) -> Callable[[Request], None]:
    known = _LOCAL_NAMES | {local_name.lower()}

    def refuse(request: Request) -> None:
        stated = request.headers.get("host", "")
        match = _HOST.fullmatch(stated)
        name = (match["address"] or match["name"]).lower() if match else ""
        if name not in known:
            shown = match["address"] or match["name"] if match else stated[:_NAME_SHOWN]
            raise RefusalError(403, f"this server answers to localhost alone, not to '{shown}'")

    return refuse


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusalError)
    return JSONResponse(error.body, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """FastAPI's own refusals: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}: {error.detail}"
    return JSONResponse(error_body(error.status_code, where), error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(error_body(500, f"the request failed ({type(error).__name__})"), 500)
