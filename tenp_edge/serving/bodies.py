"""Bodies of requests: their kind, their size, their time."""

from __future__ import annotations

import asyncio

from fastapi import Request

from tenp_edge.serving.refusal import RefusalError
from tenp_edge.serving.service import Service


async def body_of(request: Request, service: Service) -> bytes:
    """The body, of at most the limit's bytes and in at most its time. Raises RefusalError."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also keeps web pages out: a browser asks before it sends JSON to another site.
        raise RefusalError(
            415,
            f"the content type is '{kind}', not application/json; "
            "try: -H 'Content-Type: application/json'",
        )
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
