"""Damage everything that this tool reads; one error may come out, in time, and nothing else.

    python benchmarks/fuzz_loaders.py --inputs 20000

A sound input of every kind is damaged at random and read by the code that reads it in earnest, in
processes of their own: a traceback, a signal, and more than ``--seconds`` for one input are
failures. They are listed, their inputs kept in ``--keep``, and the script exits with 1. The same
seed makes the same inputs. What is accepted is used, too: GGUF files are evaluated (the first
``--run`` of each kind), vocabularies tokenise, plans are checked. docs/results.md has the table.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import select
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from fuzz_targets import Loader, make_loaders
from records import Table, add_record_flag, write_record

from tenp_edge.errors import UserError
from tenp_edge.runtime.chat_template import TemplateError
from tenp_edge.serving.refusal import RefusalError

_REFUSALS = (UserError, RefusalError, TemplateError)
_OUTCOMES = ("refused", "accepted", "failed")
_PER_PROCESS = 500
COLUMNS = (
    ("loader", "{loader}"),
    ("inputs", "{inputs:,}"),
    ("refused", "{refused:,}"),
    ("accepted", "{accepted:,}"),
    ("tracebacks, crashes, hangs", "{failed}"),
)


def main() -> None:
    arguments, table = _arguments(), Table(COLUMNS)
    with tempfile.TemporaryDirectory() as scratch:
        loaders = make_loaders(Path(scratch))
        chosen = arguments.only.split(",") if arguments.only else list(loaders)
        total = sum(loaders[name].weight for name in chosen)
        failures = 0
        print(f"{'loader':<14} {'inputs':>7} {'refused':>8} {'accepted':>9} {'failed':>7} {'s':>6}")
        for name in chosen:
            inputs = max(1, arguments.inputs * loaders[name].weight // total)
            begun = time.perf_counter()
            counts = fuzz(name, loaders[name], inputs, arguments)
            seconds = time.perf_counter() - begun
            shown = (*(counts[outcome] for outcome in _OUTCOMES), seconds)
            print(
                "{:<14} {:>7} {:>8} {:>9} {:>7} {:>6.1f}".format(name, inputs, *shown), flush=True
            )
            failures += counts["failed"]
            table.add({"loader": name, "inputs": inputs, **{o: counts[o] for o in _OUTCOMES}})
    table.add(
        {"loader": "all"} | {k: sum(r[k] for r in table.rows) for k in ("inputs", *_OUTCOMES)}
    )
    write_record(arguments.record, loaders=table)
    print(f"failures: {failures}")
    sys.exit(1 if failures else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="of all loaders together")
    parser.add_argument("--run", type=int, default=100, help="accepted inputs used, per loader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=20.0, help="that one input may take")
    parser.add_argument("--only", help="loaders, with commas between them")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    add_record_flag(parser)
    return parser.parse_args()


# -- processes -------------------------------------------------------------------------------------


def fuzz(name: str, loader: Loader, inputs: int, arguments: argparse.Namespace) -> Counter[str]:
    """Outcomes of ``inputs`` inputs; a process that dies or hangs costs only the one it was at."""
    counts: Counter[str] = Counter()
    done, used = 0, 0
    while done < inputs:
        stop = min(inputs, done + _PER_PROCESS)
        for outcome in _batch(name, loader, range(done, stop), arguments, used):
            done += 1
            used += outcome == "accepted"
            what = "failed" if outcome not in _OUTCOMES else outcome
            counts[what] += 1
            if what == "failed":
                print(f"{name} {done - 1}: {outcome}", file=sys.stderr)
                _keep(name, loader, done - 1, arguments)
    return counts


def _batch(
    name: str, loader: Loader, numbers: range, arguments: argparse.Namespace, used: int
) -> Iterator[str]:
    """An outcome per number, up to the one at which the process ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(name, loader, numbers, arguments, used, writing)
    os.close(writing)
    left, buffer, hung = len(numbers), b"", False
    try:
        while left:
            if not select.select([reading], [], [], arguments.seconds)[0]:
                hung = True
                break
            data = os.read(reading, 65536)
            if not data:
                break
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                left -= 1
                yield line.decode()
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    if left:
        yield "took too long" if hung else f"the process ended: {status}"


def _child(
    name: str,
    loader: Loader,
    numbers: range,
    arguments: argparse.Namespace,
    used: int,
    writing: int,
) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.environ["GGML_NO_BACKTRACE"] = "1"
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    for number in numbers:
        loader.place(loader.damage(_generator(arguments.seed, name, number)))
        outcome = _outcome(loader, used < arguments.run)
        used += outcome == "accepted"
        os.write(writing, outcome.encode() + b"\n")
    signal.pause()  # Killed: what libraries do at exit is none of this.


def _outcome(loader: Loader, use: bool) -> str:
    try:
        loader.check()
        if use:
            loader.use()
        return "accepted"
    except _REFUSALS as error:
        return "refused" if "\n" not in error.args[0].split("\ntry: ")[0] else "two lines"
    except BaseException as error:
        text = f"{type(error).__name__}: {error}".replace("\n", " ")
        return text.encode("ascii", "backslashreplace").decode()[:300]


def _generator(seed: int, name: str, number: int) -> random.Random:
    return random.Random(f"{seed} {name} {number}")


def _keep(name: str, loader: Loader, number: int, arguments: argparse.Namespace) -> None:
    arguments.keep.mkdir(exist_ok=True)
    data = loader.damage(_generator(arguments.seed, name, number))
    (arguments.keep / f"{name}-{arguments.seed}-{number}").write_bytes(data)


if __name__ == "__main__":
    main()
