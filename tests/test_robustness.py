"""Nothing goes wrong in silence: locks, damage, kills, signals, what the system refuses.

The long versions of the two process tests are benchmarks/kill_test.py and two_writers.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import crashing
import pytest
from test_bad_input import refusal

from tenp_edge import interrupts
from tenp_edge.compress import MARKER
from tenp_edge.disk import copy_file
from tenp_edge.errors import UserError
from tenp_edge.exporters.onnx.directory import whole_directory
from tenp_edge.locking import LOCK, one_writer, one_writer_of
from tenp_edge.oserrors import as_user_error
from tenp_edge.statistics import VERSION, load_statistics
from tenp_edge.verbs import run_merge

BENCHMARKS = Path(crashing.__file__).parent
QUICK = ("--samples", "2", "--seq-len", "64", "--no-validate")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crashing.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def finished(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repaired run, to be damaged; and no process is started to ask what memory it takes."""
    monkeypatch.setattr(crashing.gguf, "known_peak", crashing.not_asked)
    crashing.repair(model, tmp_path / "out")
    return tmp_path / "out"


class Notes:
    """A Progress that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def task(self, title: str, total: float, unit: str) -> Iterator[Notes]:
        yield self

    def advance(self, amount: float = 1) -> None:
        pass

    def note(self, text: str) -> None:
        self.said.append(text)


def names(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


# -- one writer ------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from tenp_edge.locking import one_writer
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


def test_a_second_process_is_refused_and_says_who_is_first(tmp_path: Path, model: Path) -> None:
    out = tmp_path / "out"
    with held(out) as other:
        for job in (crashing.compress, crashing.calibrate):
            assert refusal(lambda job=job: job(model, out)) == (
                f"another tenp-edge process ({other.pid}) is writing to {out}",
                "another -o, or the same command when that one has ended",
            )
    assert names(out) == [LOCK]


@pytest.mark.parametrize("inside", ["calibration", "mended"])
def test_the_directories_inside_have_locks_of_their_own(
    inside: str, finished: Path, model: Path
) -> None:
    shutil.rmtree(finished / inside)
    with held(finished / inside), pytest.raises(UserError, match="is writing to .*/" + inside):
        crashing.repair(model, finished)


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


def test_what_a_kill_at_the_first_file_leaves_is_taken_over(model: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json.partial").touch()
    (tmp_path / LOCK).touch()
    crashing.compress(model, tmp_path)
    assert (tmp_path / "model.gguf").is_file()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    "script", [("kill_test.py", "--points", "7", "--twice"), ("two_writers.py", "--pairs", "3")]
)
def test_short_version_of(script: tuple[str, ...]) -> None:
    command = [sys.executable, str(BENCHMARKS / script[0]), *script[1:], "--job", "repair"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# -- damage of equal size --------------------------------------------------------------------------


def flip(file: Path) -> None:
    """Flip 1,000 bytes in the middle; the size stays."""
    data = bytearray(file.read_bytes())
    start = max(0, len(data) // 2 - 500)
    data[start : start + 1000] = bytes(byte ^ 0xFF for byte in data[start : start + 1000])
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.gguf", "{out}/model.gguf changed after it was written: made again"),
        (
            "checkpoint/model.safetensors",
            "{out}/checkpoint/model.safetensors changed after it was written: made again",
        ),
        (
            "checkpoint/config.json",
            "{out}/checkpoint/config.json changed after it was written: made again",
        ),
        (
            "mended/layer-1.safetensors",
            "{out}/mended/layer-1.safetensors changed after it was written: made again",
        ),
        (
            "calibration/statistics.safetensors",
            "{out}/calibration/statistics.safetensors is damaged: its bytes are not those that "
            "were written; calibrating again",
        ),
    ],
)
def test_damage_is_said_and_mended(name: str, said: str, finished: Path, model: Path) -> None:
    before, notes = crashing.contents(finished), Notes()
    flip(finished / name)
    crashing.repair(model, finished, notes)
    assert said.format(out=finished) in notes.said
    assert "nothing to do" not in " ".join(notes.said)
    assert crashing.contents(finished) == before


@pytest.mark.parametrize("name", ["model.onnx", "tenp.json"])
def test_damage_in_an_onnx_directory(name: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    crashing.onnx(model, out)
    before, notes = crashing.contents(out), Notes()
    flip(out / "onnx" / name)
    crashing.onnx(model, out, notes)
    assert f"{out / 'onnx' / name} changed after it was written: made again" in notes.said
    assert crashing.contents(out) == before


def test_an_export_that_was_killed_in_anothers_place_is_continued(tmp_path: Path) -> None:
    target = tmp_path / "onnx"
    target.mkdir()
    (target / MARKER).write_text('{"files": {"old": null, "moved": null}}')
    for name in ("old", "moved", "not ours"):
        (target / name).touch()
    with whole_directory(target) as partial:
        for name in ("new", "tenp.json"):
            (partial / name).touch()
    assert names(target) == ["new", "not ours", "tenp.json"]


def test_damaged_statistics_are_not_planned_from(finished: Path) -> None:
    work = finished / "calibration"
    flip(work / "statistics.safetensors")
    assert refusal(lambda: load_statistics(work)) == (
        f"{work / 'statistics.safetensors'} is damaged: its bytes are not those that were written",
        f"tenp-edge calibrate MODEL -o {work}",
    )


def test_statistics_of_another_version(tmp_path: Path) -> None:
    record = {"format": "tenp-edge statistics", "version": VERSION - 1}
    (tmp_path / "statistics.json").write_text(json.dumps(record))
    assert refusal(lambda: load_statistics(tmp_path)) == (
        f"{tmp_path} holds no tenp-edge statistics of version 2",
        f"tenp-edge calibrate MODEL -o {tmp_path}",
    )


def test_damaged_gradients_are_noticed(model: Path, tmp_path: Path) -> None:
    crashing.calibrate(model, tmp_path)
    flip(tmp_path / "gradients.safetensors")
    message, _ = refusal(lambda: load_statistics(tmp_path))
    assert message.startswith(f"{tmp_path / 'gradients.safetensors'} is damaged")


# -- what is said ----------------------------------------------------------------------------------


def test_a_rerun_says_that_there_is_nothing_to_do(finished: Path, model: Path) -> None:
    notes = Notes()
    crashing.repair(model, finished, notes)
    assert notes.said == [f"nothing to do: {finished} is complete"]


def test_a_continued_run_says_what_is_done(finished: Path, model: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    del manifest["complete"], manifest["stages"]["export"]
    (finished / "manifest.json").write_text(json.dumps(manifest))
    notes = Notes()
    crashing.repair(model, finished, notes)
    assert notes.said == ["continuing: calibration done, plan done, mending done, checkpoint done"]


def test_a_manifest_of_an_older_version_is_run_again(finished: Path, model: Path) -> None:
    before = crashing.contents(finished)
    manifest = json.loads((finished / "manifest.json").read_text())
    for stage in manifest["stages"].values():
        stage["files"] = {name: entry["bytes"] for name, entry in stage["files"].items()}
    (finished / "manifest.json").write_text(json.dumps(manifest))
    crashing.repair(model, finished)
    assert crashing.contents(finished) == before


def test_a_broken_manifest(finished: Path, model: Path) -> None:
    (finished / "manifest.json").write_text("{")
    message, hint = refusal(lambda: crashing.repair(model, finished))
    assert message.startswith(f"{finished / 'manifest.json'} is not valid JSON")
    assert hint == "another -o, or --force to overwrite it"


def test_statistics_that_are_not_there(refuse: Callable[..., str], model: Path) -> None:
    plan = ("plan", model, "--keep", "0.5", "--calibration")
    assert refuse(*plan, "nowhere") == (
        "error: nowhere holds no statistics\ntry:   tenp-edge calibrate MODEL -o nowhere"
    )


def test_the_output_of_compress_is_not_the_statistics(finished: Path) -> None:
    assert refusal(lambda: load_statistics(finished)) == (
        f"{finished} holds no statistics itself",
        f"--calibration {finished / 'calibration'}",
    )


# -- merge -----------------------------------------------------------------------------------------

MERGE = "tenp-edge merge WORK1 WORK2 -o WORK, of different text or seeds"


def test_merge_counts_no_text_twice(finished: Path, tmp_path: Path) -> None:
    work, copy, out = finished / "calibration", tmp_path / "copy", tmp_path / "sum"
    assert refusal(lambda: run_merge([work], out)) == (
        "there is one directory of statistics: nothing to add to it",
        MERGE,
    )
    shutil.copytree(work, copy)
    assert refusal(lambda: run_merge([work, copy], out)) == (
        "the same text would be counted twice: two of them saw it",
        MERGE,
    )
    assert not out.exists()


def test_merge_overwrites_nothing_unasked(finished: Path) -> None:
    work = finished / "calibration"
    assert refusal(lambda: run_merge([work, work], work)) == (
        f"{work} is one of those that are added up",
        "another -o",
    )
    other = finished.parent / "other"
    assert refusal(lambda: run_merge([other, other], work)) == (
        f"{work} holds statistics already",
        "another -o, or --force to overwrite it",
    )


# -- what the operating system refuses -------------------------------------------------------------


def test_an_output_that_is_a_file(refuse: Callable[..., str], model: Path, tmp_path: Path) -> None:
    file = tmp_path / "code.txt"
    file.write_text("precious")
    for verb in (("compress", model, "--keep", "0.5", *QUICK), ("calibrate", model)):
        assert refuse(*verb, "-o", file) == (f"error: {file} is not a directory\ntry:   another -o")
    assert file.read_text() == "precious"


def test_an_output_that_is_a_dangling_link(
    refuse: Callable[..., str], model: Path, tmp_path: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    assert refuse("calibrate", model, "-o", link) == (
        f"error: {link} is a link to nowhere, which does not exist\n"
        "try:   another -o, or create what it points to"
    )


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_an_output_where_nothing_can_be_created(refuse: Callable[..., str], model: Path) -> None:
    assert refuse("plan", model, "--keep", "0.5", "-o", "/proc/plan.json") == (
        "error: /proc/plan.json cannot be created: /proc takes no new files\n"
        "try:   another -o, in a directory that you may write to"
    )


def test_a_mistyped_directory_is_not_created(
    refuse: Callable[..., str], model: Path, tmp_path: Path
) -> None:
    for verb in (("plan", model, "--keep", "0.5"), ("validate", model, model)):
        assert refuse(*verb, "-o", tmp_path / "new" / "file.json") == (
            f"error: the directory {tmp_path / 'new'} does not exist\n"
            f"try:   mkdir -p {tmp_path / 'new'}, or another -o"
        )
    assert not list(tmp_path.iterdir())


PLACE = "another -o, in a directory that you may write to"


@pytest.mark.parametrize(
    ("code", "name", "message", "hint"),
    [
        (30, "{d}/out/x.partial", "{d}/out/x lies on a disk that can only be read", PLACE),
        (13, "{d}/out/x.partial", "{d}/out/x cannot be written: no permission in {d}", PLACE),
        (
            13,
            "{d}/.m.gguf.tenp-edge.lock",
            "{d}/m.gguf cannot be written: no permission in {d}",
            PLACE,
        ),
        (5, "{d}/x", "the disk failed to read or write {d}/x", "a copy on another disk"),
        (24, None, "too many files are open", "ulimit -n 4096, then the same command"),
        (36, "{d}/x", "{d}/x: File name too long", "another path"),
        (
            28,
            None,
            "the disk is full",
            "free some space; the same command continues",
        ),
    ],
)
def test_sentences(code: int, name: str | None, message: str, hint: str, tmp_path: Path) -> None:
    path = None if name is None else name.format(d=tmp_path)
    found = as_user_error(OSError(code, os.strerror(code), path))
    assert found is not None
    assert (found.message, found.hint) == (message.format(d=tmp_path), hint)


def test_an_error_of_a_library_is_not_the_systems() -> None:
    assert as_user_error(OSError("no such tokenizer")) is None


def test_a_copy_is_whole_or_not_there(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(2**20))
    child = f"""
import resource, sys
from pathlib import Path
from tenp_edge.compress import MARKER
from tenp_edge.disk import copy_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
copy_file(Path({str(source)!r}), Path({str(tmp_path / "target")!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", child], capture_output=True, text=True, check=False
    )
    assert "target needs 1.00 MiB, the limit for one file is 1000 B" in done.stderr
    assert names(tmp_path) == ["source"]
    copy_file(source, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == bytes(2**20)


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")],
)
def test_a_signal_ends_with_a_word(
    number: signal.Signals, code: int, said: str, model: Path, tmp_path: Path
) -> None:
    data, out = ("--data", f"text={model / 'text.txt'}"), tmp_path / "out"
    arguments = ["calibrate", model, *data, "--samples", "5000", "--seq-len", "16", "-o", out]
    command = [sys.executable, "-m", "tenp_edge.cli", *map(str, arguments)]
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
    try:
        with interrupts.stopping():
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(interrupts.Stopped), interrupts.stopping():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends when its answer is done")
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), *sys.path))}
    program = (
        "import waiting; from tenp_edge.child import ask; ask(waiting.wait, {'file': 'number'})"
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
from tenp_edge.child import answers

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
