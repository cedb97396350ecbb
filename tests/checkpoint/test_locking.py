"""One writer per output."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import crashing
import pytest
from support.edits import refusal
from support.noting import names

from tenp_edge.checkpoint.locking import LOCK, one_writer, one_writer_of
from tenp_edge.errors import UserError

BENCHMARKS = Path(crashing.__file__).parent


HOLDER = """
import sys, time
from pathlib import Path
from tenp_edge.checkpoint.locking import one_writer
with one_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@contextmanager
def held(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock of ``directory``."""
    command = [sys.executable, "-c", HOLDER, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_says_who_is_first(
    tmp_path: Path, small_model: Path
) -> None:
    out = tmp_path / "out"
    with held(out) as other:
        for job in (crashing.compress, crashing.calibrate):
            assert refusal(lambda job=job: job(small_model, out)) == (
                f"another tenp-edge process ({other.pid}) is writing to {out}",
                "another -o, or the same command when that one has ended",
            )
    assert names(out) == [LOCK]


@pytest.mark.parametrize("inside", ["calibration", "mended"])
def test_the_directories_inside_have_locks_of_their_own(
    inside: str, finished: Path, small_model: Path
) -> None:
    shutil.rmtree(finished / inside)
    with held(finished / inside), pytest.raises(UserError, match="is writing to .*/" + inside):
        crashing.repair(small_model, finished)


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    with held(tmp_path) as other:
        other.kill()
        other.wait()
        assert (tmp_path / LOCK).is_file()
        with one_writer(tmp_path):
            assert (tmp_path / LOCK).read_text() == str(os.getpid())
    assert not list(tmp_path.iterdir())


def test_a_lock_is_open_to_its_own_thread_alone(tmp_path: Path) -> None:
    refused = []

    def other_thread() -> None:
        try:
            with one_writer(tmp_path / "out"):
                pass
        except UserError as error:
            refused.append(error)

    with one_writer(tmp_path / "out"), one_writer(tmp_path / "out"):
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert not list(tmp_path.iterdir()), "a directory made for the lock alone is left"


def test_the_lock_of_a_file_lies_beside_it(tmp_path: Path) -> None:
    with one_writer_of(tmp_path / "model.gguf"):
        assert names(tmp_path) == [f".model.gguf{LOCK}"]
    assert not list(tmp_path.iterdir())


def test_what_a_kill_at_the_first_file_leaves_is_taken_over(
    small_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "manifest.json.partial").touch()
    (tmp_path / LOCK).touch()
    crashing.compress(small_model, tmp_path)
    assert (tmp_path / "model.gguf").is_file()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    "script", [("kill_test.py", "--points", "7", "--twice"), ("two_writers.py", "--pairs", "3")]
)
def test_short_version_of(script: tuple[str, ...]) -> None:
    command = [sys.executable, str(BENCHMARKS / script[0]), *script[1:], "--job", "repair"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
