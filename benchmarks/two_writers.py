"""Start two processes on one output: one ends with the right bytes, the other is refused.

    python benchmarks/two_writers.py --pairs 40

The second process of a pair starts after a delay drawn by chance, up to one and a half times what
a run takes. Every pair must end with the files of an undisturbed run, and each of its processes
with exit 0, or with exit 2 and one line that names the other. The script exits with 1 otherwise.
docs/results.md has the numbers.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import crashing
from records import Table, add_record_flag, write_record

_LONGEST_DELAY = 1.5
_ONE_REFUSED = f"exit 0 and exit {crashing.REFUSED}"
COLUMNS = (
    ("job", "{job}"),
    ("pairs of writers", "{pairs}"),
    ("one refused", "{refused}"),
    ("wrong files", "{wrong}"),
)


def main() -> None:
    arguments = _arguments()
    failures, table = 0, Table(COLUMNS)
    with tempfile.TemporaryDirectory() as scratch:
        model = crashing.write_model(Path(scratch) / "model")
        names = arguments.job or ("compress", "repair", "calibrate")
        crashing.load_all(model, Path(scratch), names)
        for name in names:
            counts, bad = pairs(name, model, Path(scratch), arguments.pairs, arguments.seed)
            refused = counts[_ONE_REFUSED]
            table.add({"job": name, "pairs": counts.total(), "refused": refused, "wrong": len(bad)})
            told = ", ".join(f"{count} x {what}" for what, count in sorted(counts.items()))
            print(f"{name:>10}: {told}; {len(bad)} failures")
            print("".join(f"            {line}\n" for line in bad), end="", flush=True)
            failures += len(bad)
    write_record(arguments.record, pairs=table)
    sys.exit(1 if failures else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", choices=crashing.JOBS, action="append")
    parser.add_argument("--pairs", type=int, default=40, help="pairs per job")
    parser.add_argument("--seed", type=int, default=0)
    add_record_flag(parser)
    return parser.parse_args()


def pairs(
    name: str, model: Path, scratch: Path, count: int, seed: int = 0
) -> tuple[Counter[str], list[str]]:
    """How ``count`` pairs of job ``name`` ended, and what was wrong with them."""
    job, chance = crashing.JOBS[name], random.Random(seed)
    whole, started = scratch / f"{name}-alone", time.monotonic()
    crashing.run(job, model, whole)
    seconds, wanted = time.monotonic() - started, crashing.contents(whole)
    counts: Counter[str] = Counter()
    bad = []
    for _ in range(count):
        out = scratch / f"{name}-pair"
        shutil.rmtree(out, ignore_errors=True)
        delay = chance.uniform(0, _LONGEST_DELAY * seconds)
        children = [crashing.start(job, model, out, delay=d) for d in (0.0, delay)]
        ended = [crashing.wait(child, out) for child in children]
        counts[" and ".join(f"exit {code}" for code in sorted(e.code for e in ended))] += 1
        bad += [f"after {delay:.2f} s: {line}" for line in _wrong(ended, wanted, out)]
    return counts, bad


def _wrong(ended: list[crashing.Ended], wanted: dict[str, str], out: Path) -> list[str]:
    wrong = []
    for process in ended:
        refused = process.code == crashing.REFUSED and "another tenp-edge process" in process.said
        if process.code and not refused:
            wrong.append(f"a process ended with {process.code}: {process.said}")
    if all(process.code for process in ended):
        wrong.append("both were refused")
    if crashing.contents(out) != wanted:
        wrong.append("the files are not those of an undisturbed run")
    return wrong


if __name__ == "__main__":
    main()
