"""Signals end a command with a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tenp_edge.checkpoint.locking import LOCK
from tenp_edge.cli import interrupts


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")],
)
def test_a_signal_ends_with_a_word(
    number: signal.Signals, code: int, said: str, small_model: Path, tmp_path: Path
) -> None:
    data, out = ("--data", f"text={small_model / 'text.txt'}"), tmp_path / "out"
    arguments = ["calibrate", small_model, *data, "--samples", "5000", "--seq-len", "16", "-o", out]
    command = [sys.executable, "-m", "tenp_edge.cli.main", *map(str, arguments)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        wait_for(out / "calibration.partial" / "job.json", process)
        process.send_signal(number)
        _, printed = process.communicate()
    assert process.returncode == code, printed
    assert printed.splitlines()[-2:] == [
        f"error: {said}",
        "try:   the same command again: it continues where it stopped",
    ]
    assert not [file for file in out.rglob("*") if file.name.endswith((".bin.partial", LOCK))]


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    while not file.exists() and process.poll() is None:
        time.sleep(0.02)


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A shell starts what it puts in the background with SIGINT ignored.
    before_int = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interrupts.stopping():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(interrupts.Stopped), interrupts.stopping():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, before_int)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends when its answer is done")
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), *sys.path))}
    program = (
        "import waiting; from tenp_edge.runtime.child import ask; "
        "ask(waiting.wait, {'file': 'number'})"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, text=True) as parent:
        wait_for(tmp_path / "number", parent)
        parent.kill()
    child = int((tmp_path / "number").read_text())
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(child)


WAITING = """
import os, time
from pathlib import Path
from tenp_edge.runtime.child import answers

@answers
def wait(facts):
    Path("number.partial").write_text(str(os.getpid()))
    Path("number.partial").replace(facts["file"])
    time.sleep(60)
"""


def is_running(process: int) -> bool:
    """Whether ``process`` is there, and not a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
