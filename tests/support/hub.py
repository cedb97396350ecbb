"""A stand-in of the Hugging Face Hub: its HTTP API, as far as an upload or a download uses it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

from support.listening import Handler, listening

TOKEN = "hf_standin"
COMMIT = "c0ffee" + "0" * 34


class Hub:
    """``files``: name -> bytes of the one repository; ``sent``: bytes that arrived of each large
    file, by SHA-256; ``break_after``: large files that may arrive before the line is cut."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.sent: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.private: bool | None = None
        self.branch = "main"
        self.may_write = True
        self.break_after: int | None = None
        self.arriving = threading.Lock()
        self.address = ""

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                self.files[value["path"]] = self.sent[value["oid"]]


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that listens on a port of this machine."""
    hub = Hub()
    with listening(type("Handler", (_Handler,), {"hub": hub})) as hub.address:
        yield hub


class _Handler(Handler, BaseHTTPRequestHandler):  # whose do_GET may be called so
    hub: Hub

    def do_POST(self) -> None:
        body, path = self._body(), unquote(self.path)
        self.hub.requests.append(f"POST {path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid credentials"})
        elif not self.hub.may_write:
            self._answer(403, {"error": "You don't have the rights"})
        elif path == "/api/repos/create":
            name = json.loads(body)
            self.hub.private = name.get("private") or name.get("visibility") == "private"
            self._answer(200, {"url": f"{self.hub.address}/{name['organization']}/{name['name']}"})
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/branch/" in path:
            self.hub.branch = path.rsplit("/", 1)[1]
            self._answer(200, {})
        elif "/preupload/" in path:
            files = [self._mode(file) for file in json.loads(body)["files"]]
            self._answer(200, {"files": files})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [self._object(one) for one in json.loads(body)["objects"]]
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            assert path.endswith(f"/commit/{self.hub.branch}")
            self.hub.commit([json.loads(line) for line in body.splitlines()])
            url = f"{self.hub.address}/{path.split('/', 3)[3].split('/commit/')[0]}/commit/{COMMIT}"
            self._answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": url})
        else:
            self._answer(404, {"error": path})

    def do_PUT(self) -> None:
        body, oid = self._body(), self.path.rsplit("/", 1)[1]
        self.hub.requests.append("PUT")
        assert hashlib.sha256(body).hexdigest() == oid
        with self.hub.arriving:  # files come side by side
            full = self.hub.break_after is not None and len(self.hub.sent) >= self.hub.break_after
            if not full:
                self.hub.sent[oid] = body
        if full:
            self.close_connection = True
            self.connection.close()
            return
        self._answer(200, {})

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        self.hub.requests.append(f"{self.command} {path}")
        if "/resolve/" in path:
            _, _, rest = path.partition("/resolve/")
            revision, name = rest.split("/", 1)
            self._file(revision, name)
        elif "/tree/" in path:
            listed = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                for name, data in self.hub.files.items()
            ]
            self._answer(200, listed)
        elif path.endswith((f"/revision/{self.hub.branch}", COMMIT)):
            names = [{"rfilename": name} for name in self.hub.files]
            self._answer(200, {"id": "somebody/model", "sha": COMMIT, "siblings": names})
        else:
            self._answer(404, {"error": path}, {"X-Error-Code": "RevisionNotFound"})

    def _file(self, revision: str, name: str) -> None:
        if revision not in (self.hub.branch, COMMIT) or name not in self.hub.files:
            self._answer(404, {}, {"X-Error-Code": "EntryNotFound"})
            return
        data = self.hub.files[name]
        head = {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(data)}"', "X-Linked-Size": str(len(data))}
        self.send(200, data, {**head, "Content-Type": "application/octet-stream"})

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        large = file["path"].endswith((".gguf", ".safetensors", ".zip"))
        mode = "lfs" if large else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

    def _object(self, wanted: dict[str, Any]) -> dict[str, Any]:
        one = {"oid": wanted["oid"], "size": wanted["size"], "authenticated": True}
        if wanted["oid"] in self.hub.sent:
            return one  # it is there: nothing to do
        return {**one, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{wanted['oid']}"}}}

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            return b"".join(self._chunks())
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _answer(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json"}
        self.send(status, json.dumps(value).encode(), kind | (headers or {}))


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
