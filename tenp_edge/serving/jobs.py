"""Jobs on the event loop: what they deliver as a stream of server-sent events, or in one piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tenp_edge.serving.preparing import Prepared
from tenp_edge.serving.refusal import RefusalError, error_body
from tenp_edge.serving.service import Service
from tenp_edge.serving.worker import Item, Job, Told, Work

GONE = 499  # Nobody reads it.


class Running:
    """Jobs that were submitted, on the event loop. `cancel` them when nobody reads them any
    more."""

    def __init__(self, service: Service, prepared: Prepared) -> None:
        self.answer = prepared.answer
        self._service, self._loop = service, asyncio.get_running_loop()
        self._inbox: asyncio.Queue[tuple[int, Item]] = asyncio.Queue()
        self._jobs = [self._job(index, work) for index, work in enumerate(prepared.works)]
        service.worker.submit(*self._jobs)

    async def events(self) -> AsyncIterator[str]:
        """What is generated, as it is; raises what ended a job."""
        for line in self.answer.head():
            yield line
        running = len(self._jobs)
        while running:
            index, item = await self._inbox.get()
            if isinstance(item, Exception):
                raise item
            if isinstance(item, Told):
                self.answer.told_prompt(index, item.values)
                continue
            job, choice = self._jobs[index], self.answer.choices[index]
            choice.slot, choice.cached_tokens = job.slot, job.cached_tokens
            delta = self.answer.add(index, item)
            running -= item.finish is not None
            for line in self.answer.events(index, delta):
                yield line
            # Pieces that are there already must not keep the loop from seeing the client leave.
            await asyncio.sleep(0)
        for line in self.answer.tail():
            yield line

    def cancel(self) -> None:
        """Free the model for others; harmless for jobs that have ended."""
        for job in self._jobs:
            self._service.worker.cancel(job)

    def _job(self, index: int, work: Work) -> Job:
        def deliver(item: Item) -> None:
            """Called in the worker's thread."""
            try:
                self._loop.call_soon_threadsafe(self._inbox.put_nowait, (index, item))
            except RuntimeError:  # The loop was closed: the server is going down.
                job.cancelled = True

        job = Job(work, deliver)
        return job


class Stream(StreamingResponse):
    """Server-sent events; the jobs end with the response, however that ends."""

    def __init__(self, running: Running) -> None:
        self._running = running
        super().__init__(
            _events(running),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._running.cancel()


async def _events(running: Running) -> AsyncIterator[str]:
    try:
        async for line in running.events():
            yield line
    except RefusalError as error:
        yield running.answer.error(error.body)
    except Exception as error:  # The status line is gone; the worker has logged the traceback.
        body = error_body(500, f"the generation failed ({type(error).__name__})")
        yield running.answer.error(body)


async def whole(request: Request, running: Running) -> Response:
    """The answer in one piece, unless the client goes away before it is complete."""

    async def collect() -> None:
        async for _ in running.events():
            pass

    tasks = [asyncio.create_task(collect()), asyncio.create_task(gone(request))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            return Response(status_code=GONE)
        tasks[0].result()
        return JSONResponse(running.answer.whole())
    finally:
        running.cancel()
        for task in tasks:
            task.cancel()


async def gone(request: Request) -> None:
    """Until the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
