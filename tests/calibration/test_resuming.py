"""A calibration that was stopped or killed ends with the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.calibrating import StopAfter, StoppedError, domain, files_of, run, two_domains

from tenp_edge.calibration import collect
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError


@pytest.fixture(scope="module")
def undisturbed(
    checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("undisturbed")
    run(checkpoint_of("deepseek_v2"), directory, two_domains())
    files = files_of(directory)
    assert sorted(files) == ["statistics.json", "statistics.safetensors"]
    return files


@pytest.mark.parametrize("steps", (0, 1, 2, 3))
def test_stopped_between_layers(
    steps: int,
    checkpoint_of: Callable[[str], Path],
    tmp_path: Path,
    undisturbed: dict[str, bytes],
) -> None:
    path = checkpoint_of("deepseek_v2")  # its first layer is dense
    with pytest.raises(StoppedError):
        run(path, tmp_path, two_domains(), progress=StopAfter(steps))
    assert not (tmp_path / "statistics.json").exists()
    run(path, tmp_path, two_domains())
    assert files_of(tmp_path) == undisturbed


@pytest.mark.parametrize("step", ("write_tensors", "join_files", "layer_tensors"))
def test_stopped_inside_a_layer(
    step: str,
    checkpoint_of: Callable[[str], Path],
    tmp_path: Path,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between a layer's states and its sums, and before the last file."""

    def stop(*_: Any) -> None:
        raise StoppedError

    path = checkpoint_of("deepseek_v2")
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(collect, step, stop)
        run(path, tmp_path, two_domains())
    run(path, tmp_path, two_domains())
    assert files_of(tmp_path) == undisturbed


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
sys.path[:0] = {paths!r}
from support.calibrating import StopAfter, run, two_domains
torch.set_num_threads({threads})

class Kill(StopAfter):
    def advance(self, amount=1):
        if self.count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count -= 1

run(Path({model!r}), Path({work!r}), two_domains(), progress=Kill(2))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    path = checkpoint_of("deepseek_v2")
    script = KILLED.format(
        paths=sys.path, threads=torch.get_num_threads(), model=str(path), work=str(tmp_path)
    )
    result = subprocess.run([sys.executable, "-c", script], env=os.environ, check=False)
    assert result.returncode == -9
    assert (tmp_path / "calibration.partial" / "hidden-2.bin").is_file()
    run(path, tmp_path, two_domains())
    assert files_of(tmp_path) == undisturbed


def test_finished_is_returned_at_once(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = checkpoint_of("mixtral")
    run(path, tmp_path, two_domains())
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    run(path, tmp_path, two_domains(), progress=StopAfter(0))
    assert before == {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}


def test_other_inputs_start_anew(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    path = checkpoint_of("mixtral")
    with pytest.raises(StoppedError):
        run(path, tmp_path, two_domains(), progress=StopAfter(1))
    found = run(path, tmp_path, [domain("code", 2, seed=5)], seed=5)
    assert (found.domains, found.info["seed"]) == (("code",), 5)
    again = run(path, tmp_path, two_domains())
    assert again.domains == ("code", "prose")
    assert sorted(files_of(tmp_path)) == ["statistics.json", "statistics.safetensors"]


@pytest.mark.parametrize("finished", (True, False))
def test_another_models_directory(
    finished: bool, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    first, other = (Checkpoint(checkpoint_of(family)) for family in ("mixtral", "olmoe"))
    if finished:
        run(first.path, tmp_path, two_domains())
    else:
        with pytest.raises(StoppedError):
            run(first.path, tmp_path, two_domains(), progress=StopAfter(1))
    before = files_of(tmp_path) if finished else {}
    with pytest.raises(UserError) as error:
        run(other.path, tmp_path, two_domains())
    if finished:
        assert str(error.value) == (
            f"the statistics in {tmp_path} belong to another checkpoint "
            f"({first.fingerprint[:12]}, this one is {other.fingerprint[:12]})\n"
            "try: another -o"
        )
        assert files_of(tmp_path) == before
    else:
        assert str(error.value) == (
            f"{tmp_path} holds the unfinished calibration of another checkpoint\n"
            "try: another output directory, or delete this one"
        )
