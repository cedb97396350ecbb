"""What a server does with those who mean no good: silence, floods, wrong names, broken models."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from support.serving_cases import Server, error_of, serving

from tenp_edge.errors import UserError
from tenp_edge.runtime.generation import run_text
from tenp_edge.runtime.gguf.header import read_header
from tenp_edge.runtime.opening import RunOptions, open_model
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.serving.access import Access
from tenp_edge.serving.app import create_app
from tenp_edge.serving.connections import QuietHandler, affordable, protocol_class
from tenp_edge.serving.refusal import RefusalError
from tenp_edge.serving.server import serve
from tenp_edge.serving.service import Limits, Service

COMPLETIONS = "/v1/completions"
DAMAGED = "the model computes NaN or infinity: its weights are damaged"


@pytest.fixture(scope="module")
def file(files: dict[str, Path]) -> Path:
    return files["per-expert"]


@pytest.fixture(scope="module")
def server(file: Path) -> Iterator[Server]:
    with serving(file, "--context", 256) as running:
        yield running


@pytest.fixture
def service(file: Path) -> Iterator[Service]:
    limits = Limits(waiting=2, body_bytes=1000)
    with (
        open_model(file, RunOptions(context=128, threads=1)) as session,
        closing(Service(session, "tiny", limits=limits)) as made,
    ):
        yield made


@contextmanager
def listening(app: Any, most: int, header_seconds: float) -> Iterator[tuple[str, int]]:
    """``app`` in uvicorn with our connections, in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(
            app, http=protocol_class(most, header_seconds), lifespan="off", log_level="error"
        )
        running = uvicorn.Server(config)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()
        finally:
            running.should_exit = True
            thread.join()


async def _slow(scope: Any, receive: Any, send: Any) -> None:
    await asyncio.sleep(1.0)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def until(true: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


# -- connections -----------------------------------------------------------------------------------


def test_silent_connections_make_room(file: Path) -> None:
    """Far more of them than the server has files: it answers all the same, and logs nothing."""
    with serving(file, open_files=200) as server, ExitStack() as stack:
        address = httpx.URL(server.url)
        for _ in range(300):
            stack.enter_context(socket.create_connection((address.host, address.port or 0)))
        assert httpx.get(f"{server.url}/health", timeout=10).json()["status"] == "ok"


def test_idle_connections_have_a_deadline() -> None:
    request = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
    with listening(_slow, most=10, header_seconds=0.4) as address, ExitStack() as stack:
        silent, begun, busy = (
            stack.enter_context(socket.create_connection(address, timeout=5)) for _ in range(3)
        )
        begun.sendall(request)  # and never the empty line that ends it
        busy.sendall(request + b"\r\n")
        assert silent.recv(100) == b"" and begun.recv(100) == b""
        # The answer took longer than the deadline of an idle connection; then it is idle again.
        assert busy.recv(1000).startswith(b"HTTP/1.1 204 ")
        assert busy.recv(100) == b""


def test_the_longest_idle_connection_leaves_first() -> None:
    with listening(_slow, most=3, header_seconds=60) as address, ExitStack() as stack:
        found = []
        for _ in range(4):
            found.append(stack.enter_context(socket.create_connection(address, timeout=5)))
            time.sleep(0.05)
        assert found[0].recv(100) == b""
        found[1].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert found[1].recv(1000).startswith(b"HTTP/1.1 204 ")


def test_connections_leave_files_for_others() -> None:
    assert affordable(4) == 8
    assert affordable(10**9) < 10**9


def test_asyncios_errors_are_said_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    handler = QuietHandler()
    with closing(asyncio.new_event_loop()) as loop, caplog.at_level(logging.ERROR):
        for _ in range(1000):
            error = OSError(24, "Too many open files")
            handler(loop, {"message": "socket.accept() out of system resource", "exception": error})
    assert caplog.messages == [
        "socket.accept() out of system resource ([Errno 24] Too many open files)"
    ]


# -- what waits ------------------------------------------------------------------------------------


def test_text_that_cannot_fit_is_not_tokenised(server: Server) -> None:
    begun = time.monotonic()
    assert server.error(COMPLETIONS, prompt=" " * 2**19) == (
        400,
        "the prompt is too long: 524288 bytes, which exceeds the available context size "
        "of 8192 bytes (256 tokens)",
        "prompt",
    )
    chat = [{"role": "user", "content": "'" * 2**19}]
    assert server.error("/v1/chat/completions", messages=chat) == (
        400,
        "the prompt is too long: 524288 bytes, which exceeds the available context size "
        "of 8192 bytes (256 tokens)",
        "messages",
    )
    assert time.monotonic() - begun < 1


def test_what_waits_to_be_tokenised_is_counted(service: Service) -> None:
    for waiting in (1, 2, 3):
        service.reserve()
        assert service.worker.counts == (0, waiting)
    with pytest.raises(RefusalError) as caught:
        service.reserve()
    assert (caught.value.status, str(caught.value)) == (
        503,
        "2 requests are waiting already; try again later",
    )
    assert caught.value.headers == {"Retry-After": "5"}
    service.worker.release()
    service.reserve()


def test_bodies_on_their_way_are_bounded_together(service: Service) -> None:
    service.hold(32_000)
    with pytest.raises(RefusalError) as caught:
        service.hold(1)
    assert (caught.value.status, str(caught.value)) == (
        503,
        "too many long requests are on their way; try again later",
    )
    service.hold(-32_000)
    service.hold(1)


def test_a_client_that_left_is_not_tokenised(service: Service) -> None:
    tokenised, free = [], threading.Event()
    prompts = service.prompts
    tokens = prompts.tokens
    prompts.tokens = lambda text: tokenised.append(text) or tokens(text)  # type: ignore
    app = create_app(service, Access("127.0.0.1"))
    body = b'{"prompt": "Hi", "max_tokens": 1}'
    head = (
        f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with listening(app, most=10, header_seconds=60) as address:
        service.preparing.submit(free.wait)  # somebody's long prompt
        with socket.create_connection(address) as client:
            client.sendall(head.encode() + body)
            until(lambda: service.worker.counts == (0, 1))
        until(lambda: service.worker.counts == (0, 0))
        free.set()
        url = f"http://127.0.0.1:{address[1]}{COMPLETIONS}"
        assert httpx.post(url, json={"prompt": "Hi", "max_tokens": 1}).status_code == 200
    assert len(tokenised) == 1


def test_clients_that_leave_before_their_body_is_here(file: Path) -> None:
    """They are no errors: the server writes nothing (`serving`)."""
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with serving(file, "--context", 256) as server:
        address = httpx.URL(server.url)
        for _ in range(5):
            with socket.create_connection((address.host, address.port or 0)) as client:
                client.sendall(f"{head}Content-Length: 100\r\n\r\n".encode() + b'{"prompt": ')
                time.sleep(0.05)
        assert server.post(COMPLETIONS, prompt="Hi", max_tokens=1).status_code == 200


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("evil.example:80", "evil.example"),
        ("evil.example@localhost", "evil.example@localhost"),
        ("localhost/x@evil.example", "localhost/x@evil.example"),
        ("[::1", "[::1"),
        ("", ""),
        ("localhost.", "localhost."),
    ],
)
def test_foreign_names(server: Server, host: str, shown: str) -> None:
    assert error_of(server.http.get("/health", headers={"host": host}))[:2] == (
        403,
        f"this server answers to localhost alone, not to '{shown}'",
    )


@pytest.mark.parametrize("host", ["localhost:99", "LOCALHOST", "127.0.0.1", "[::1]:8080"])
def test_own_names(server: Server, host: str) -> None:
    assert server.http.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("300.1.1.1", "'300.1.1.1' is no address"),
        ("192.0.2.1", "192.0.2.1 is no address of this machine"),
    ],
)
def test_hosts_that_cannot_be_listened_on(host: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        serve(Path("missing.gguf"), host=host)
    assert (caught.value.message, caught.value.hint) == (
        message,
        "--host 127.0.0.1, or --host 0.0.0.0 for every address of this machine",
    )


# -- models ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def damaged(file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose last norm holds a NaN: every logit is one."""
    made = tmp_path_factory.mktemp("damaged") / "model.gguf"
    data = bytearray(file.read_bytes())
    info = read_header(file).tensors["output_norm.weight"]
    data[info.offset : info.offset + 4] = np.float32(np.nan).tobytes()
    made.write_bytes(data)
    return made


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_logits_that_are_not_numbers(damaged: Path, temperature: float) -> None:
    sampling = SamplingOptions(temperature=temperature)
    with (
        open_model(damaged, RunOptions(context=64, threads=1)) as session,
        pytest.raises(UserError) as caught,
    ):
        list(run_text(session, "Hi", sampling, 2))
    assert (caught.value.message, caught.value.hint) == (DAMAGED, "a sound copy of it")


def test_a_damaged_model_is_one_error_in_a_server(damaged: Path) -> None:
    with serving(damaged) as server:  # which writes nothing to its log
        assert server.error(COMPLETIONS, prompt="Hi") == (
            500,
            f"{DAMAGED}; try: a sound copy of it",
            None,
        )
        streamed = server.post(COMPLETIONS, prompt="Hi", stream=True)
        assert streamed.text.startswith('data: {"error": {"message": "the model computes NaN')
        assert server.health() == {"status": "ok", "running": 0, "waiting": 0}


def test_extreme_sampling(server: Server) -> None:
    def text(**fields: object) -> str:
        answer = server.post(COMPLETIONS, prompt="Hi", max_tokens=8, seed=1, **fields)
        assert answer.status_code == 200, answer.text
        found: str = answer.json()["choices"][0]["text"]
        return found

    assert text(temperature=1e-320) == text(temperature=0)
    for penalty in (1e-320, 1e308):
        assert text(temperature=0.8, repeat_penalty=penalty) is not None
    assert text(temperature=1e308, top_p=1e-320) is not None
