"""The process that serves: a socket, uvicorn, and an orderly end."""

from __future__ import annotations

import asyncio
import errno
import gc
import ipaddress
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import uvicorn

from tenp_edge.errors import UserError
from tenp_edge.runtime.opening import RunOptions, model_name, open_model
from tenp_edge.runtime.parallel import planned_parallel
from tenp_edge.runtime.sampling import Sampler, SamplingOptions
from tenp_edge.runtime.session import Session
from tenp_edge.serving.access import Access
from tenp_edge.serving.app import create_app
from tenp_edge.serving.connections import BACKLOG, QuietHandler, affordable, protocol_class
from tenp_edge.serving.request_log import LoggedRequest
from tenp_edge.serving.service import Limits, Service

_GRACE_SECONDS = 2
# Connections that the system keeps until they are accepted. One more has to try again, after a
# second.
_QUEUE = 128


def serve(
    file: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    options: RunOptions | None = None,
    sampling: SamplingOptions | None = None,
    limits: Limits | None = None,
    parallel: int | None = 1,
    name: str | None = None,
    aliases: Sequence[str] = (),
    keys: Sequence[str] = (),
    origins: Sequence[str] = (),
    started: Callable[[Service, str], None] | None = None,
    log: Callable[[LoggedRequest], None] | None = None,
) -> None:
    """Serve ``file`` until SIGINT or SIGTERM. ``port`` 0 takes a free one; ``parallel`` requests
    are answered at a time, None: `planned_parallel`; ``name`` is the model's (default: `name_of`),
    ``aliases`` are others of it; ``keys`` and ``origins`` as in `Access`.
    ``started`` is told the service and its address, ``log`` of every request.

    Raises UserError for an address that cannot be had and for a file that cannot be run.
    """
    Sampler(sampling or SamplingOptions())  # Wrong defaults are refused now, not per request.
    access = Access(host if is_loopback(host) else None, keys, origins)
    with (
        closing(_listen(host, port)) as listener,
        open_model(file, _parallel(file, options or RunOptions(), parallel)) as session,
        closing(
            Service(session, name or name_of(file, session), sampling, limits, aliases)
        ) as service,
    ):
        app = create_app(service, access, log)
        if started is not None:
            started(service, _address(listener))
        config = uvicorn.Config(
            app,
            # Warnings are about requests that are no HTTP, a line each: anyone could fill a disk.
            log_level="error",
            access_log=False,
            lifespan="off",
            http=protocol_class(
                affordable(service.limits.connections), service.limits.header_seconds
            ),
            ws="none",
            backlog=BACKLOG,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        with suppress(KeyboardInterrupt):  # How uvicorn says that SIGINT ended it.
            _Server(config, service).run(sockets=[listener])


class _Server(uvicorn.Server):
    """On its way down it first ends what is being generated: streams would keep it waiting."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(QuietHandler())
        await super().startup(sockets)
        # What is loaded now stays. Python looks at all objects only when a quarter as many are
        # new: with these among them, megabytes of what requests leave in circles would wait.
        gc.collect()
        gc.freeze()
        for listener in sockets or ():
            listener.listen(_QUEUE)  # asyncio made it as short as what it accepts at a stretch

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.worker.stop()
        await super().shutdown(sockets)


def _parallel(file: Path, options: RunOptions, parallel: int | None) -> RunOptions:
    if parallel is None:
        parallel = planned_parallel(file, options) if file.exists() else 1  # else refused later
    return replace(options, parallel=parallel)


def name_of(file: Path, session: Session) -> str:
    """What the model is called: as its metadata says, else after its file or directory."""
    if session.title is not None:
        return session.title
    name = model_name(file)
    return file.resolve().parent.name if name == "model" else name


def is_loopback(host: str) -> bool:
    """Whether ``host`` is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    """Bound before the model is loaded, so that a taken port costs no time."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_QUEUE)
    except OSError as error:
        raise _refused(host, port, error) from None


def _refused(host: str, port: int, error: OSError) -> UserError:
    """Why nothing can listen there. `socket.create_server` hands a resolver's errors on as plain
    ones, with their negative numbers."""
    address_hint = "--host 127.0.0.1, or --host 0.0.0.0 for every address of this machine"
    if isinstance(error, socket.gaierror) or (error.errno or 0) < 0:
        return UserError(f"'{host}' is no address", address_hint)
    if error.errno == errno.EADDRNOTAVAIL:
        return UserError(f"{host} is no address of this machine", address_hint)
    reason = os.strerror(error.errno or 0)
    hint = "--port 0 for any free port"
    if error.errno == errno.EACCES:
        hint = "--port 8080: ports below 1024 are the system's"
    return UserError(f"cannot listen on port {port} of {host}: {reason}", hint)


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
