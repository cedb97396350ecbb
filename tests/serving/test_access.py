"""Who may ask: keys, pages of other sites; and the line that every request leaves."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from support.edits import refusal
from support.serving_cases import Server, error_of

from tenp_edge.runtime.opening import RunOptions, open_model
from tenp_edge.serving.access import Access
from tenp_edge.serving.app import create_app
from tenp_edge.serving.keys import keys_of
from tenp_edge.serving.request_log import LoggedRequest
from tenp_edge.serving.server import name_of
from tenp_edge.serving.service import Service

SITE = "https://chat.example"


@pytest.mark.parametrize(
    ("headers", "status", "message"),
    [
        ({}, 401, "an API key is needed"),
        ({"authorization": "Bearer guess"}, 401, "the API key is wrong"),
        ({"authorization": "none"}, 401, "an API key is needed"),
        ({"x-api-key": "non\u00e9".encode("latin-1")}, 401, "the API key is wrong"),
        ({"authorization": "bearer none"}, 200, None),
        ({"x-api-key": "none"}, 200, None),
    ],
)
def test_keys(shared: Server, headers: dict[str, Any], status: int, message: str | None) -> None:
    answer = httpx.get(f"{shared.url}/v1/models", headers=headers)
    assert answer.status_code == status
    if message is not None:
        assert error_of(answer)[1] == message
        assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{shared.url}/health", headers=headers).status_code == 200


def test_pages_of_other_sites(shared: Server) -> None:
    asked = {
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type,authorization",
        "access-control-request-private-network": "true",
    }
    for origin, allowed in ((SITE, SITE), ("https://evil.example", None)):
        before = httpx.options(f"{shared.url}/v1/models", headers=asked | {"origin": origin})
        assert before.headers.get("access-control-allow-origin") == allowed
        assert before.status_code == (200 if allowed else 400)
        then = shared.http.get("/v1/models", headers={"origin": origin})
        assert then.headers.get("access-control-allow-origin") == allowed


def test_origins_are_sites() -> None:
    Access(origins=(SITE, "*", "http://localhost:3000", "null"))
    local = "http://localhost:3000"
    for wrong, right in (
        ("chat.example", SITE),
        (f"{SITE}/", SITE),
        (f"{SITE}/a/b", SITE),
        (f"{local}/", local),
    ):
        said = f"--cors {wrong} is no site as browsers name it"
        assert refusal(partial(Access, origins=(wrong,))) == (said, f"--cors {right}")


def test_where_keys_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENP_EDGE_API_KEY", raising=False)
    assert keys_of([], None) == []
    file = tmp_path / "keys"
    file.write_text("# ours\nthird\n\n fourth \n")
    monkeypatch.setenv("TENP_EDGE_API_KEY", "second")
    assert keys_of(["first"], file) == ["first", "second", "third", "fourth"]
    file.write_text("# none\n")
    assert refusal(lambda: keys_of([], file)) == (
        f"{file} has no key",
        "a file with a key a line",
    )
    missing = tmp_path / "missing"
    assert refusal(lambda: keys_of([], missing))[0] == (
        f"{missing} cannot be read: No such file or directory"
    )
    for key in ("", "a b ", "kéy"):
        assert refusal(lambda key=key: keys_of([key], None)) == (
            "an API key is empty or has characters that no request can send",
            "letters, digits and - _ . alone",
        )


def test_a_line_for_every_request(files: dict[str, Path]) -> None:
    logged: list[LoggedRequest] = []
    with open_model(files["per-expert"], RunOptions(context=64, threads=1)) as session:
        service = Service(session, "tiny")
        client = TestClient(create_app(service, Access(), logged.append))
        client.post("/v1/completions", json={"prompt": [5, 6], "max_tokens": 3})
        client.get("/v1/models/other%1b")
        service.close()
        assert name_of(Path("OUT/model.gguf"), session) == "Model"
        session.title = None
        assert name_of(Path("OUT/model.gguf"), session) == "OUT"
        assert name_of(Path("OUT/small.gguf"), session) == "small"
    lines, time = [str(request) for request in logged], r"\d\d:\d\d:\d\d"
    assert re.fullmatch(
        rf"{time} POST /v1/completions 200 in \d+ ms, 2 \+ 3 tokens, [0-9.]+ tokens/s", lines[0]
    )
    assert re.fullmatch(rf"{time} GET /v1/models/other\\x1b 404 in \d+ ms", lines[1])
    first, second = (json.loads(request.json()) for request in logged)
    assert first["usage"]["completion_tokens"] == first["timings"]["predicted_n"] == 3
    assert (second["path"], second["status"]) == ("/v1/models/other\\x1b", 404)
    assert second.keys() == {"time", "method", "path", "status", "milliseconds"}
