"""A full disk is said before the work, and leaves nothing behind."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.edits import refusal
from support.limits import largest_file
from support.plans import ragged_plan

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.disk import require_free
from tenp_edge.units import format_size

CheckpointOf = Callable[[str], Path]


@pytest.fixture
def model(checkpoint_of: CheckpointOf, tmp_path: Path) -> Path:
    """A copy of the tiny qwen3_moe that a test may damage."""
    return Path(shutil.copytree(checkpoint_of("qwen3_moe"), tmp_path / "model"))


def test_disk_is_checked_before_the_work(tmp_path: Path) -> None:
    message, hint = refusal(lambda: require_free(tmp_path / "new", 2**60, "the pruned checkpoint"))
    numbers = re.escape(f"{tmp_path / 'new'} has ") + r"[0-9.]+ [GMK]iB free"
    assert re.fullmatch(
        rf"the pruned checkpoint needs 1073741824\.00 GiB of disk, {numbers}", message
    )
    assert hint == "free some space or choose -o on another disk; the same command continues"
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no file-size limits")
def test_file_size_limit(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    checkpoint, out = Checkpoint(checkpoint_of("qwen3_moe")), tmp_path / "out"
    source = ModelSource(checkpoint, ragged_plan(checkpoint))
    write_checkpoint(source, tmp_path / "whole")
    size = format_size((tmp_path / "whole" / "model.safetensors").stat().st_size)
    with largest_file(500 * 1024):
        assert refusal(lambda: write_checkpoint(source, out)) == (
            f"model.safetensors needs {size}, the limit for one file is 500.00 KiB (ulimit -f)",
            "raise the limit; the same command continues",
        )
    assert [file.name for file in out.iterdir()] == ["tenp-unfinished.json"]
    write_checkpoint(source, out)
    assert sorted(f.name for f in out.iterdir()) == sorted(
        f.name for f in (tmp_path / "whole").iterdir()
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A tmpfs of 640 KiB, where mounting is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=640k", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_disk_that_fills_up(
    checkpoint_of: CheckpointOf, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The space that was free at the check is gone when it is needed."""
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    source = ModelSource(checkpoint, ragged_plan(checkpoint))
    message, hint = refusal(lambda: write_checkpoint(source, small_disk))
    assert message.startswith("the pruned checkpoint needs ") and " of disk, " in message
    monkeypatch.setattr("tenp_edge.checkpoint.writer.require_free", lambda *_: None)
    message, _ = refusal(lambda: write_checkpoint(source, small_disk))
    assert message.startswith("the disk is full: model.safetensors needs ")
    assert message.endswith(" KiB free")
    assert hint == "free some space or choose -o on another disk; the same command continues"
    assert [file.name for file in small_disk.iterdir()] == ["tenp-unfinished.json"]
