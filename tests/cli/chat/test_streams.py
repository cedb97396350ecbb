"""Pipes, closed streams and encodings, each with the command in a process of its own."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = "--temperature 0 --threads 1 --kv-type F32 --context 128"


def shell(
    script: str, file: Path, stdin: bytes = b"", entry: str = "tenp_edge", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """``script`` in a shell, in which RUN is the command with ``file``."""
    command = f"{shlex.quote(sys.executable)} -m {entry} run {shlex.quote(str(file))} {SMALL}"
    return subprocess.run(
        ["bash", "-c", script.replace("RUN", command)],
        input=stdin,
        capture_output=True,
        env=os.environ | environment,
        check=False,
    )


@pytest.mark.parametrize("entry", ["tenp_edge", "tenp_edge.cli.main"])
def test_a_reader_that_has_enough(chat_file: Path, entry: str) -> None:
    script = "RUN --raw -p a | head -c 1 >/dev/null; exit ${PIPESTATUS[0]}"
    done = shell(script, chat_file, entry=entry)
    assert done.returncode == 141
    assert [line.split(",")[0] for line in done.stderr.decode().splitlines()] == ["chat.gguf"]


@pytest.mark.parametrize("words", ["--help", "-V", "plan --help", "plan --help-set", "profiles"])
def test_readers_of_finished_work_may_leave(words: str) -> None:
    """Nothing is lost by it: the exit says so."""
    command = f"{shlex.quote(sys.executable)} -m tenp_edge {words}"
    # The reader is gone before a word is written.
    script = f"(sleep 0.1; {command}) | exec true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_streams_that_are_closed(chat_file: Path) -> None:
    done = shell("RUN -p a -n 2 >&-", chat_file)
    assert done.returncode == 0 and b"2 tokens" in done.stderr
    done = shell("RUN -p a -n 2 2>&-", chat_file)
    assert done.returncode == 0 and done.stdout
    done = shell("RUN -n 2 <&-", chat_file)
    assert (done.returncode, done.stderr) == (
        2,
        b"error: the prompt is empty\ntry:   -p with some text\n",
    )


def test_text_is_utf_8_in_any_locale(chat_file: Path) -> None:
    prompt = "Grüße, 日本\n".encode()
    usual = shell("RUN --raw -n 8", chat_file, prompt, LC_ALL="C.UTF-8")
    assert usual.returncode == 0 and usual.stdout
    for bare in ({"LC_ALL": "C"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}):
        assert shell("RUN --raw -n 8", chat_file, prompt, **bare).stdout == usual.stdout
        said = shell("RUN --raw -n 8 -p 'Grüße, 日本\n'", chat_file, **bare)
        assert said.stdout == usual.stdout, said.stderr


def test_bytes_that_are_no_text(chat_file: Path) -> None:
    done = shell("RUN", chat_file, b"ab\xff")
    assert (done.returncode, done.stderr) == (
        2,
        b"error: byte 3 of what is piped in is not UTF-8\ntry:   text in UTF-8\n",
    )
