"""Two checkouts of this repository side by side: start-up, calibration, speed of a file, peak RSS.

    python benchmarks/bench_start.py --old ../before --new . --rounds 15 [--file FILE.gguf]

`tenp-edge inspect demo`, `tenp-edge run FILE -n 1` and `tenp-edge calibrate demo`, each in a fresh
process; the FILE that runs is the bundled model as the old checkout exports it, for our runtime
(per-expert) and llama.cpp (merged). With --file also what `tenp-edge bench` measures of that file:
tokens a second of prefill and decode. Rounds alternate between the checkouts, so that a slow minute
hits both: a ratio (new over old) is the median over the rounds of the ratio in a round. CPU time
and peak RSS are the system's own account of the process. Both checkouts must have the built
`_ragged`, or neither.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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
CALIBRATION, PRINTED = "calibration", "printed"  # in the scratch directory
# Modules are compiled once, as where a package is installed, whatever the caller's shell says.
CACHED = {"PYTHONDONTWRITEBYTECODE": ""}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--old", type=Path, required=True, help="a checkout")
    parser.add_argument("--new", type=Path, required=True, help="another")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--file", type=Path, help="time prefill and decode of this GGUF file too")
    arguments = parser.parse_args()
    trees = [arguments.old.resolve(), arguments.new.resolve()]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        for layout in LAYOUTS:
            start(trees[0], ("export", "demo", "--layout", layout, "-o", layout), work)
        greedy: tuple[str, ...] = ("-p", "def", "-n", "1", "--temperature", "0", "--threads", "1")
        print("| command | | old | new | new / old |\n|---|---|---|---|---|")
        if all("`--raw`" in (tree / "docs" / "cli.md").read_text() for tree in trees):
            greedy += ("--raw",)  # what `run` always did before it had the flag
        for command in (("inspect", "demo"), *(("run", layout, *greedy) for layout in LAYOUTS)):
            compare(trees, command, work, arguments.rounds)
        calibrate = ("calibrate", "demo", "-o", CALIBRATION, "--samples", "24", "--seq-len", "256")
        compare(trees, calibrate, work, arguments.rounds)
        if arguments.file:
            compare_speeds(trees, arguments.file.resolve(), work, arguments.rounds)


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


def compare_speeds(trees: Sequence[Path], file: Path, work: Path, rounds: int) -> None:
    """A row for prefill and one for decode: tokens a second, each round in fresh processes."""
    measured: dict[Path, list[dict[str, float]]] = {tree: [] for tree in trees}
    for number in range(rounds):
        for tree in trees if number % 2 else reversed(trees):
            start(tree, ("bench", str(file), "--json"), work)
            measured[tree].append(json.loads((work / PRINTED).read_text().splitlines()[-1]))
    for phase in ("prefill", "decode"):
        name = f"{phase}_tokens_per_second"
        old, new = ([row[name] for row in measured[tree]] for tree in trees)
        ratio = median(b / a for a, b in zip(old, new, strict=True))
        print(
            f"| bench | {phase}, tokens/s | {median(old):.1f} | {median(new):.1f} | {ratio:.3f} |"
        )


def start(tree: Path, command: Sequence[str], work: Path) -> Measured:
    """Run the command of ``tree`` in the directory ``work``, in a process of its own."""
    project = tomllib.loads((tree / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["tenp-edge"].partition(":")
    program = f"from {module} import {function} as main; main()"
    typed = [sys.executable, "-c", program, *command]
    shutil.rmtree(work / CALIBRATION, ignore_errors=True)
    began = time.perf_counter()
    printed, environment = work / PRINTED, os.environ | {"PYTHONPATH": str(tree)} | CACHED
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
