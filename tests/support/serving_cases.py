"""A served tiny model: the same whole model for both runtimes, and a server in its own process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI
from support import tiny
from support.gguf_cases import export
from support.onnx_directories import export_onnx

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource

TEMPLATE = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>"
    "{% endfor %}{{ '\n' }}{% endfor %}"
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('user first') }}{% endif %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_files(directory: Path, positions: int = 8192) -> dict[str, Path]:
    """One model with a chat template in both layouts, and as an ONNX directory; ``positions``: how
    many tokens it knows."""
    model = tiny.make(directory / "model", "mixtral", max_position_embeddings=positions)
    settings = model / "tokenizer_config.json"
    raw = json.loads(settings.read_text()) | {"chat_template": TEMPLATE}
    settings.write_text(json.dumps(raw))
    files = {layout: directory / f"{layout}.gguf" for layout in ("per-expert", "merged")}
    for layout, file in files.items():
        export(ModelSource(Checkpoint(model)), file, "F32", layout)
    onnx = export_onnx(ModelSource(Checkpoint(model)), directory / "onnx-model")
    return files | {"onnx": onnx}


class Server:
    """A running `tenp-edge serve`."""

    def __init__(self, process: subprocess.Popen[str], first_line: str) -> None:
        self.process, self.first_line = process, first_line
        found = re.search(r"http://\S+:\d+", first_line)
        assert found, first_line
        self.url = found[0]
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.openai = OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def post(self, path: str, **fields: Any) -> httpx.Response:
        return self.http.post(path, json=fields)

    def error(self, path: str, **fields: Any) -> tuple[int, str, str | None]:
        """(status, message, param) of a request that is refused in OpenAI's words."""
        return error_of(self.post(path, **fields))

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/health").json()
        return found

    def wait_for(self, running: int, waiting: int, seconds: float) -> float:
        """Seconds until the server is that busy; fails after ``seconds``."""
        wanted, begun = {"status": "ok", "running": running, "waiting": waiting}, time.monotonic()
        while (found := self.health()) != wanted:
            assert time.monotonic() - begun < seconds, found
            time.sleep(0.01)
        return time.monotonic() - begun

    def rss_bytes(self) -> int:
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def error_of(response: httpx.Response) -> tuple[int, str, str | None]:
    error = response.json()["error"]
    assert error["type"] == (
        "server_error" if response.status_code >= 500 else "invalid_request_error"
    )
    return response.status_code, error["message"], error["param"]


@contextmanager
def serving(file: Path, *flags: object, open_files: int | None = None) -> Iterator[Server]:
    """`tenp-edge serve` of ``file`` on a free port, with at most ``open_files``.

    It must end cleanly on Ctrl-C.
    """
    arguments = ["serve", file, "--port", 0, "--threads", 1, "--kv-type", "F32", "--quiet"]
    arguments += ["--name", file.stem, *flags]
    command = [sys.executable, "-m", "tenp_edge.cli.main", *map(str, arguments)]
    if open_files is not None:
        command = ["sh", "-c", f'ulimit -n {open_files}; exec "$@"', "sh", *command]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        server = Server(process, process.stderr.readline())
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=20)[1]
    assert (process.returncode, errors) == (0, ""), errors


def together(*calls: Callable[[], Any]) -> list[Any]:
    """The results of ``calls``, each made in a thread of its own at the same time."""
    results: list[Any] = [None] * len(calls)

    def call(index: int) -> None:
        results[index] = calls[index]()

    threads = [threading.Thread(target=call, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results
