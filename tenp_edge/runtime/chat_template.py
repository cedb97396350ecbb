"""Rendering a chat template that anyone may have made, in bounded time and memory."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tenp_edge.errors import UserError

SECONDS = 5.0
# The interpreter with Jinja has some 100 MiB of addresses; a copy of what is rendered is cheap.
_MEMORY_BYTES = 512 * 2**20
_MEMORY_PER_BYTE = 16
_HINT = "another file: its chat template is broken or hostile"
_INSTALL = "pip install jinja2"
_PROGRAM = Path(__file__).with_name("template_process.py")


class TemplateError(Exception):
    """The template refuses, or cannot be rendered; ``str()`` tells why, on one line."""


class TemplateProcess:
    """`template_process` while it is needed: started for the first text, replaced when it had to
    be ended. Any thread may use it; they take turns."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds, self._lock = seconds, threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """The text. Raises TemplateError as the template does, UserError at a limit."""
        request: dict[str, Any] = {"template": template, "variables": dict(variables)}
        size = len(json.dumps(request))
        request["memory_bytes"] = _MEMORY_BYTES + _MEMORY_PER_BYTE * size
        with self._lock:
            answer = self._ask(json.dumps(request))
        if "limit" in answer:
            raise UserError(f"the chat template {answer['limit']}", _HINT)
        if "error" in answer:
            raise TemplateError(answer["error"])
        return str(answer["text"])

    def _ask(self, line: str) -> Mapping[str, Any]:
        process, late = self._started(), threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(self._seconds, end)
        timer.start()
        try:
            reply = _exchange(process, line)
        finally:
            timer.cancel()
        if late.is_set() or reply is None:
            self.close()
        if reply is not None:
            answer: Mapping[str, Any] = json.loads(reply)
            return answer
        why = f"takes over {self._seconds:g} seconds" if late.is_set() else "needs too much memory"
        raise UserError(f"the chat template {why}", _HINT)

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                [sys.executable, str(_PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                encoding="utf-8",
                errors="surrogatepass",
            )
            assert self._process.stdout is not None
            if not self._process.stdout.readline():
                raise UserError("Jinja, which renders chat templates, does not start", _INSTALL)
        return self._process

    def close(self) -> None:
        """End it; harmless when called again, and it starts again when it is needed."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            # What was not written yet has nobody to go to.
            with suppress(BrokenPipeError), process:
                pass
            process.wait()


def _exchange(process: subprocess.Popen[str], line: str) -> str | None:
    """The line that ``process`` answers; None where it ended before that."""
    assert process.stdin is not None and process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.write(line + "\n")
        process.stdin.flush()
    reply = process.stdout.readline()
    return reply if reply.endswith("\n") else None


PROCESS = TemplateProcess()
atexit.register(PROCESS.close)
