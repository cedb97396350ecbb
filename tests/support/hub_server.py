"""A local stand-in of the hub's HTTP API: models that are directories here, read in ranges."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from support.listening import Handler, listening

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """``url``: its address; ``sent``: bytes of each file that were read."""

    def __init__(self, url: str, sent: dict[str, int]) -> None:
        self.url, self.sent = url, sent


@contextmanager
def served(models: Mapping[str, Path]) -> Iterator[Hub]:
    """The hub with these models, by OWNER/NAME."""
    sent: dict[str, int] = {}
    handler = type("Handler", (_Handler,), {"models": dict(models), "sent": sent})
    with listening(handler) as address:
        yield Hub(address, sent)


class _Handler(Handler, BaseHTTPRequestHandler):  # whose do_GET may be called so
    models: dict[str, Path]
    sent: dict[str, int]

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        about = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?", path)
        if about and about[1] in self.models:
            self.send(200, json.dumps(self._info(about[1])).encode(), {})
            return
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        place = self.models.get(file[1], Path("nowhere")) / file[2] if file else Path("nowhere")
        if place.is_file():
            self._send_file(place)
        else:
            self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _info(self, name: str) -> dict[str, Any]:
        files = [file for file in sorted(self.models[name].iterdir()) if file.is_file()]
        siblings = [{"rfilename": file.name, "size": file.stat().st_size} for file in files]
        return {"id": name, "modelId": name, "sha": SHA, "siblings": siblings}

    def _send_file(self, file: Path) -> None:
        data, status = file.read_bytes(), 200
        headers = {"X-Repo-Commit": SHA, "ETag": f'"{len(data)}"', "Accept-Ranges": "bytes"}
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), min(int(asked[2]), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        if self.command != "HEAD":
            self.sent[file.name] = self.sent.get(file.name, 0) + len(data)
        self.send(status, data, headers)
