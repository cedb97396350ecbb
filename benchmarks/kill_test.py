"""Kill a run before each of its operations on files, run it again: the bytes must be the same.

    python benchmarks/kill_test.py                        # every operation of four jobs
    python benchmarks/kill_test.py --job repair --points 40 --twice

A job runs once undisturbed and names its operations on files (open to write, fsync, rename,
remove, make and remove a directory, truncate, lock). Then, for each of them, a fresh process is
killed (SIGKILL) just before it, and the same job runs again; with --twice that one is killed too,
at an operation drawn by chance, and a third ends it. The script exits with 1 when a rerun fails
or leaves other files than the undisturbed one. docs/results.md has the numbers.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import crashing
from records import Table, add_record_flag, write_record

KILLED = -9

COLUMNS = (
    ("job", "{job}"),
    ("operations on files, each killed before", "{kills}"),
    ("other bytes afterwards", "{wrong}"),
)


def main() -> None:
    arguments = _arguments()
    failures, table = 0, Table(COLUMNS)
    with tempfile.TemporaryDirectory() as scratch:
        model = crashing.write_model(Path(scratch) / "model")
        names = arguments.job or ("compress", "repair", "calibrate", "onnx")
        crashing.load_all(model, Path(scratch), names)
        for name in names:
            started = time.monotonic()
            results = list(
                killed(
                    name, model, Path(scratch), arguments.points, arguments.twice, arguments.seed
                )
            )
            bad = [line for line in results if line]
            table.add({"job": name, "kills": len(results), "wrong": len(bad)})
            seconds = time.monotonic() - started
            print(f"{name:>10}: {len(results)} kills, {len(bad)} failures, {seconds:.0f} s")
            print("".join(f"            {line}\n" for line in bad), end="", flush=True)
            failures += len(bad)
    write_record(arguments.record, kills=table)
    sys.exit(1 if failures else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--job", choices=crashing.JOBS, action="append")
    parser.add_argument("--points", type=int, help="kills per job, evenly spread; default: all")
    parser.add_argument("--twice", action="store_true", help="kill the rerun once too")
    parser.add_argument("--seed", type=int, default=0)
    add_record_flag(parser)
    return parser.parse_args()


def killed(
    name: str,
    model: Path,
    scratch: Path,
    points: int | None = None,
    twice: bool = False,
    seed: int = 0,
) -> Iterator[str]:
    """For each kill of job ``name``: what went wrong with the rerun, or an empty string."""
    job, chance = crashing.JOBS[name], random.Random(seed)
    whole = scratch / f"{name}-whole"
    done = crashing.run(job, model, whole)
    if done.code:
        yield f"undisturbed: {done.said}"
        return
    wanted = crashing.contents(whole)
    for point in _spread(len(done.operations), points):
        out = scratch / f"{name}-killed"
        shutil.rmtree(out, ignore_errors=True)
        ended = [crashing.run(job, model, out, point).code]
        if twice:
            ended.append(crashing.run(job, model, out, chance.randint(1, 40)).code)
        again = crashing.run(job, model, out)
        what = f"before {done.operations[point - 1]} ({point} of {len(done.operations)})"
        yield _wrong(what, ended, again, wanted, out)


def _spread(count: int, points: int | None) -> list[int]:
    """All numbers from 1 to ``count``, or ``points`` of them: the first six, then evenly."""
    if points is None or points >= count:
        return list(range(1, count + 1))
    first = list(range(1, min(6, points) + 1))
    rest = points - len(first)
    return first + [6 + round((count - 6) * (i + 1) / rest) for i in range(rest)]


def _wrong(
    what: str, ended: Sequence[int], again: crashing.Ended, wanted: dict[str, str], out: Path
) -> str:
    if ended[0] != KILLED or any(code not in (KILLED, 0) for code in ended[1:]):
        return f"{what}: the killed run ended with {ended}"
    if again.code:
        return f"{what}: the rerun ended with {again.code}: {again.said}"
    written = crashing.contents(out)
    names = written.keys() | wanted.keys()
    differing = sorted(name for name in names if written.get(name) != wanted.get(name))
    return f"{what}: {', '.join(differing)} differ" if differing else ""


if __name__ == "__main__":
    main()
