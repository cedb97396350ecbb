"""Start-up of two checkouts of this repository side by side: wall time and peak RSS.

    python benchmarks/bench_start.py --old ../before --new . --rounds 15

`tenp-edge inspect demo` and `tenp-edge run FILE -n 1`, each in a fresh process; FILE is the bundled
model as the old checkout exports it, for our runtime (per-expert) and llama.cpp (merged). Rounds
alternate between the checkouts, so that a slow minute hits both: a ratio (new over old) is the
median over the rounds of the ratio in a round. CPU time and peak RSS are the system's own account
of the process. Both checkouts must have the built `_ragged`, or neither.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from statistics import median

Measured = tuple[float, float, float]  # wall seconds, CPU seconds, bytes
PARTS = (("wall, ms", 1e-3), ("CPU, ms", 1e-3), ("peak RSS, MiB", 2.0**20))
LAYOUTS = ("per-expert", "merged")
# Modules are compiled once, as where a package is installed, whatever the caller's shell says.
CACHED = {"PYTHONDONTWRITEBYTECODE": ""}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", type=Path, required=True, help="a checkout")
    parser.add_argument("--new", type=Path, required=True, help="another")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    trees = [arguments.old.resolve(), arguments.new.resolve()]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        for layout in LAYOUTS:
            start(trees[0], ("export", "demo", "--layout", layout, "-o", layout), work)
        greedy = ("-p", "def", "-n", "1", "--temperature", "0", "--threads", "1")
        print("| command | | old | new | new / old |\n|---|---|---|---|---|")
        for command in (("inspect", "demo"), *(("run", layout, *greedy) for layout in LAYOUTS)):
            compare(trees, command, work, arguments.rounds)


def compare(trees: Sequence[Path], command: Sequence[str], work: Path, rounds: int) -> None:
    """Three rows of the table. The first round, which compiles and fills caches, is not counted."""
    measured: dict[Path, list[Measured]] = {tree: [] for tree in trees}
    for number in range(rounds + 1):
        for tree in trees if number % 2 else reversed(trees):
            measured[tree].append(start(tree, command, work))
    for part, (name, unit) in enumerate(PARTS):
        old, new = ([row[part] / unit for row in measured[tree][1:]] for tree in trees)
        ratio = median(b / a for a, b in zip(old, new, strict=True))
        what = f"| {' '.join(command[:2])} | {name} | {median(old):.1f} | {median(new):.1f} "
        print(f"{what}| {ratio:.3f} |", flush=True)


def start(tree: Path, command: Sequence[str], work: Path) -> Measured:
    """Run the command of ``tree`` in the directory ``work``, in a process of its own."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["tenp-edge"].partition(":")
    program = f"from {module} import {function} as main; main()"
    typed = [sys.executable, "-c", program, *command]
    began = time.perf_counter()
    printed, environment = work / "printed", os.environ | {"PYTHONPATH": str(tree)} | CACHED
    with (
        printed.open("wb") as out,
        subprocess.Popen(typed, cwd=work, env=environment, stdout=out, stderr=out) as process,
    ):
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode:
        what = f"{tree}: tenp-edge {' '.join(command)} ended with {process.returncode}"
        sys.exit(f"{what}\n{printed.read_text()}")
    scale = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * scale


if __name__ == "__main__":
    main()
