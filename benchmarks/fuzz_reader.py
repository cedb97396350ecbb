"""Damage headers of sound per-expert files at random; nothing but UserError may come out.

    python benchmarks/fuzz_reader.py --inputs 100000 --run 500

Every input goes through the header reader and the checks of metadata against tensors. Of those
that are accepted, the first ``--run`` are also loaded and evaluated in a process of their own,
which must not die of a signal. Inputs that fail are kept in ``--keep``, and the script exits
with 1. Seed 1 on 22 November 2026: 100,000 inputs, 3,836 accepted, 1,000 of them evaluated (995
answered, 5 refused by llama.cpp), no failure. Before it, seed 0 had found repeated tokens (also
behind a zero byte), which abort llama.cpp and are now refused.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import gguf_bytes
import tiny
from runtime_cases import export_ragged

from tenp_edge.errors import UserError
from tenp_edge.runtime.facts import read_facts
from tenp_edge.runtime.gguf_file import parse_header
from tenp_edge.runtime.perexpert import PerExpertModel
from tenp_edge.runtime.tensors import check_tensors
from tenp_edge.runtime.vocabulary import check_vocabulary

_SECONDS_PER_RUN = 20


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        sound = _sound_files(Path(scratch))
        counts, failures = _fuzz(sound, arguments, Path(scratch) / "mutant.gguf")
    for what, count in sorted(counts.items()):
        print(f"{what:>24}: {count:,}")
    print(f"{'failures':>24}: {failures:,}")
    sys.exit(1 if failures else 0)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--run", type=int, default=200, help="accepted inputs to evaluate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    return parser.parse_args()


def _sound_files(scratch: Path) -> list[tuple[bytes, bytes]]:
    """(header, data) of a tiny model of every family in Q8_0."""
    pairs = []
    for family in tiny.FAMILIES:
        file = scratch / f"{family}.gguf"
        export_ragged(tiny.make(scratch / family, family), file, "Q8_0")
        whole = file.read_bytes()
        start = parse_header(whole, len(whole)).data_start
        pairs.append((whole[:start], whole[start:]))
    return pairs


def _fuzz(
    sound: list[tuple[bytes, bytes]], arguments: argparse.Namespace, target: Path
) -> tuple[Counter[str], int]:
    generator, counts, failures = random.Random(arguments.seed), Counter[str](), 0
    begun = time.perf_counter()
    for number in range(arguments.inputs):
        header, data = sound[number % len(sound)]
        mutant = gguf_bytes.damage(header, generator)
        outcome = _check(mutant, len(mutant) + len(data))
        counts[outcome] += 1
        failed = outcome == "crashed"
        if outcome == "accepted" and counts["evaluated"] < arguments.run:
            target.write_bytes(mutant + data)
            counts["evaluated"] += 1
            ending = _evaluate(target)
            counts[f"evaluated: {ending}"] += 1
            failed = ending not in ("answered", "refused")
        if failed:
            failures += 1
            arguments.keep.mkdir(exist_ok=True)
            (arguments.keep / f"{arguments.seed}-{number}.gguf").write_bytes(mutant + data)
    counts["inputs per second"] = round(arguments.inputs / (time.perf_counter() - begun))
    return counts, failures


def _check(mutant: bytes, size: int) -> str:
    try:
        header = parse_header(mutant, size)
        check_tensors(header, read_facts(header))
        check_vocabulary(header)
    except UserError:
        return "refused"
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return "crashed"
    return "accepted"


def _evaluate(file: Path) -> str:
    """Load and evaluate ``file`` in a child: answered, refused, or how it died."""
    child = os.fork()
    if child == 0:
        _silence()
        signal.alarm(_SECONDS_PER_RUN)
        try:
            with PerExpertModel(file, context=64, threads=1) as model:
                tokens = [token % model.vocab_size for token in range(1, 41)]
                model.evaluate(tokens)
                model.decode(tokens[0])
        except UserError:
            os._exit(2)
        except BaseException:
            os._exit(3)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return f"signal {os.WTERMSIG(status)}"
    return {0: "answered", 2: "refused"}.get(os.WEXITSTATUS(status), "exception")


def _silence() -> None:
    os.environ["GGML_NO_BACKTRACE"] = "1"
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)


if __name__ == "__main__":
    main()
