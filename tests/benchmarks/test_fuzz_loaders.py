"""Every loader, each with damaged inputs: the one-minute version of benchmarks/fuzz_loaders.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fuzz_loaders


def test_no_damage_makes_more_than_one_error(tmp_path: Path) -> None:
    """In a process of its own: it forks, which OpenMP's threads would not survive."""
    command = [sys.executable, fuzz_loaders.__file__, "--inputs", 800, "--run", 8]
    done = subprocess.run(
        [*map(str, command), "--keep", str(tmp_path / "failures")],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.stdout.endswith("failures: 0\n"), done.stdout + done.stderr
    assert done.returncode == 0
