"""The command line: in this process, or in one of its own where the process is what is tested."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tenp_edge.cli import main as command_line

Done = subprocess.CompletedProcess[str]


def run(*arguments: object, cwd: Path | None = None, piped: str = "") -> Done:
    """What the command prints and how it ends, here: a new process would import for seconds."""
    command = ["tenp-edge", *(str(argument) for argument in arguments)]
    printed, said = _stream(), _stream()
    with (
        _as_if_typed(command, cwd, piped),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(said),
    ):
        try:
            command_line.main()
            code = 0
        except SystemExit as stopped:
            code = _exit_code(stopped)
    return subprocess.CompletedProcess(command, code, _text(printed), _text(said))


def started(*arguments: object, cwd: Path | None = None, piped: str = "") -> Done:
    """`tenp-edge` as installed: through its entry point, in a process of its own."""
    command = [sys.executable, "-m", "tenp_edge", *(str(argument) for argument in arguments)]
    return subprocess.run(
        command, input=piped, capture_output=True, text=True, cwd=cwd, check=False
    )


def refused(*arguments: object, cwd: Path | None = None) -> str:
    """stderr of a command that must be refused: exit 2, nothing on stdout, no traceback."""
    done = run(*arguments, cwd=cwd)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


@contextlib.contextmanager
def _as_if_typed(command: list[str], cwd: Path | None, piped: str) -> Iterator[None]:
    """``command`` as what was typed in ``cwd``; the process is as before when it has ended."""
    argv, stdin, environment = sys.argv, sys.stdin, dict(os.environ)
    sys.argv, sys.stdin = command, io.StringIO(piped)
    try:
        with contextlib.chdir(cwd or Path.cwd()):
            yield
    finally:
        sys.argv, sys.stdin = argv, stdin
        os.environ.clear()
        os.environ.update(environment)


def _exit_code(stopped: SystemExit) -> int:
    if isinstance(stopped.code, int):
        return stopped.code
    return 0 if stopped.code is None else 1


def _stream() -> io.TextIOWrapper:
    """As a pipe is: text that is encoded."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)


def _text(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()
