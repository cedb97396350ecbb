"""The HTTP of the server: routes, guards, and errors in the words of each API.

Every endpoint runs on the event loop. One more thread tokenises prompts, so that a long one stops
neither the loop nor the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tenp_edge.serving.access import Access
from tenp_edge.serving.chat_page import add_chat_page
from tenp_edge.serving.jobs import GONE
from tenp_edge.serving.refusal import RefusalError, error_body
from tenp_edge.serving.request_log import LoggedRequest, RequestLog
from tenp_edge.serving.routes.absent import add_absent_routes, no_such_route
from tenp_edge.serving.routes.anthropic import add_anthropic_routes, anthropic_error, is_anthropic
from tenp_edge.serving.routes.native import add_native_routes
from tenp_edge.serving.routes.openai import add_openai_routes
from tenp_edge.serving.routes.responses import add_responses_route
from tenp_edge.serving.service import Service

_PATH_SHOWN = 120


def create_app(
    service: Service,
    access: Access | None = None,
    log: Callable[[LoggedRequest], None] | None = None,
) -> FastAPI:
    """The application. ``access``: who may ask (default: everybody); ``log`` is told of
    every request."""
    access = access or Access()
    # FastAPI's documentation pages load scripts from elsewhere; an offline server has none.
    guards = [Depends(guard) for guard in access.guards()]
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=guards)
    app.add_exception_handler(RefusalError, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _failed)
    add_openai_routes(app, service)
    add_responses_route(app, service)
    add_native_routes(app, service)
    add_anthropic_routes(app, service)
    add_chat_page(app, service)
    add_absent_routes(app)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["*"],
            allow_headers=["*"],
            allow_private_network=True,  # Pages of the network may ask this machine, too.
            max_age=600,
        )
    app.add_middleware(RequestLog, metrics=service.metrics, write=log)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusalError)
    return _spelled(request, error.body, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """FastAPI's own refusals: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:_PATH_SHOWN]
    unknown = error.status_code == 404
    what = f"{request.method} {path}: {error.detail}"
    what = no_such_route(request.method, path) if unknown else what
    body = error_body(error.status_code, what, "not_found" if unknown else None)
    return _spelled(request, body, error.status_code, error.headers)


async def _left(request: Request, error: Exception) -> Response:
    """Who left before the body was here reads no answer."""
    return Response(status_code=GONE)


async def _failed(request: Request, error: Exception) -> Response:
    return _spelled(request, error_body(500, f"the request failed ({type(error).__name__})"), 500)


def _spelled(
    request: Request,
    body: dict[str, Any],
    status: int,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """OpenAI's error object as the API of the request has it."""
    spelled = anthropic_error(body, status) if is_anthropic(request.url.path) else body
    return JSONResponse(spelled, status, headers)
