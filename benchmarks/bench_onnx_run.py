"""Decode and peak memory of ONNX directories that the same RAM buys: types of their own, or one.

    python benchmarks/bench_onnx_run.py --dir DIR                # the bundled model, some minutes
    python benchmarks/bench_onnx_run.py --dir DIR --clock cpu    # on a machine with other work

For each RAM (what `plan` predicts for the whole model in int8, and in int4): what `compress --ram`
makes of `--format onnx` without --quant ("auto") and with --quant int8, int4 and none (float32),
without repair. Decode: tokens after a prompt, in onnxruntime; all directories of a RAM take turns,
a ratio to int8 is the median over the rounds, a round the median of its tokens. --clock cpu counts
the CPU time of all threads. Peak: `tenp-edge run` of a directory in a process of its own, whose
prompt fills the context, by the system's account.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from records import Table, add_record_flag, write_record

import tenp_edge
from tenp_edge.checkpoint.compression_plan import load_plan
from tenp_edge.runtime.memory.peak import measure_peak_rss
from tenp_edge.runtime.opening import RunOptions, open_model
from tenp_edge.runtime.session import Session

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
DEMO = Path(tenp_edge.__file__).parent / "demo_model"
QUANTS = ("auto", "int8", "int4", "none")
CONTEXT = 256
_UBATCH = 512
COLUMNS = (
    ("mode", "{mode}"),
    ("RAM of", "{of}"),
    ("RAM", "{ram:size}"),
    ("types", "{types}"),
    ("neurons kept", "{kept:keep}"),
    ("weights", "{weights:size}"),
    ("decode, of int8's speed", "{speed:.2f}"),
    ("prefill, of int8's speed", "{prefill:.2f}"),
    ("peak predicted", "{predicted:size}"),
    ("peak measured", "{measured:size}"),
)


class Bench:
    """``calibration``: finished statistics of ``model``; what is made lies in ``work``."""

    def __init__(self, args: argparse.Namespace, calibration: Path, work: Path) -> None:
        self.args, self.calibration, self.work = args, calibration, work

    def rows(self, mode: str, of: str) -> list[dict[str, Any]]:
        """One for every type that fits into the memory of the whole model in ``of``."""
        ram = self._memory_of_whole(mode, of)
        made = {quant: self._made(mode, quant, ram) for quant in QUANTS}
        there = {quant: folder for quant, folder in made.items() if folder is not None}
        speeds = self._speeds({quant: folder / "onnx" for quant, folder in there.items()})
        said = {"mode": mode, "of": f"{of}, whole", "ram": ram}
        return [
            said | {"types": _named(quant)} | speeds[quant] | self._memory(folder)
            for quant, folder in there.items()
        ]

    def _memory_of_whole(self, mode: str, quant: str) -> int:
        flags = ("--keep", "1.0", "--quant", quant, "--json")
        done = self._tenp_edge("plan", mode, *flags)
        done.check_returncode()
        return int(json.loads(done.stdout)["memory"]["total_bytes"])

    def _made(self, mode: str, quant: str, ram: int) -> Path | None:
        """None where nothing fits."""
        folder = self.work / f"{mode}-{quant}-{ram}"
        if not (folder / "manifest.json").is_file():
            flags: tuple[object, ...] = ("--ram", f"{ram}B", "--calibration", self.calibration)
            flags += () if quant == "auto" else ("--quant", quant)
            off = ("--no-repair", "--no-validate", "--skip-checkpoint")
            done = self._tenp_edge("compress", mode, *flags, *off, "-o", folder)
            if done.returncode == 2:
                print(f"{mode} {quant}: {done.stderr.strip()}", file=sys.stderr)
                return None
            done.check_returncode()
        return folder

    def _tenp_edge(self, verb: str, mode: str, *flags: object) -> subprocess.CompletedProcess[str]:
        command = (verb, self.args.model, "--format", "onnx", "--layout", mode, "-q")
        command += ("--context", CONTEXT, *flags)
        typed = [sys.executable, "-m", "tenp_edge", *map(str, command)]
        return subprocess.run(typed, capture_output=True, text=True, check=False)

    def _speeds(self, folders: dict[str, Path]) -> dict[str, dict[str, float]]:
        """Of decode and prefill, over int8's."""
        options = RunOptions(context=CONTEXT, threads=self.args.threads)
        sessions = {quant: open_model(folder, options) for quant, folder in folders.items()}
        rounds = [  # The first only warms up.
            {quant: self._round(session) for quant, session in sessions.items()}
            for _ in range(self.args.rounds + 1)
        ][1:]
        for session in sessions.values():
            session.close()

        def ratio(quant: str, step: int) -> float:
            return median(own["int8"][step] / own[quant][step] for own in rounds)

        return {quant: {"prefill": ratio(quant, 0), "speed": ratio(quant, 1)} for quant in folders}

    def _round(self, session: Session) -> tuple[float, float]:
        """Seconds of the prompt, and the median of the tokens after it."""
        size, prompt = CONTEXT - 1, CONTEXT // 2
        tokens = np.random.default_rng(1).integers(session.vocab_size, size=size).tolist()
        clock = CLOCKS[self.args.clock]
        session.reset()
        first = _seconds(session, tokens[:prompt], clock)
        return first, median(_seconds(session, [token], clock) for token in tokens[prompt:])

    def _memory(self, folder: Path) -> dict[str, Any]:
        plan = load_plan(folder / "plan.json")
        peak = measure_peak_rss(
            folder / "onnx",
            context=CONTEXT,
            ubatch=_UBATCH,
            kv_type="F32",
            threads=self.args.threads,
        )
        return {
            "kept": plan.keep_ratio,
            "weights": sum(file.stat().st_size for file in (folder / "onnx").glob("*.data")),
            "predicted": plan.memory["total_bytes"],
            "measured": peak,
        }


def _named(quant: str) -> str:
    return "float32" if quant == "none" else quant


def _seconds(session: Session, tokens: list[int], clock: Callable[[], float]) -> float:
    start = clock()
    session.evaluate(tokens)
    return clock() - start


def _calibrated(model: Path, folder: Path) -> Path:
    command = ("calibrate", model, "--data", "stdlib", "--samples", 32, "--seq-len", 256)
    typed = [sys.executable, "-m", "tenp_edge", *map(str, (*command, "-o", folder))]
    subprocess.run(typed, check=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where files may lie")
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--modes", nargs="+", default=["portable", "ort-cpu"])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--calibration", type=Path, help="kept (default: made anew)")
    parser.add_argument("--files", type=Path, help="make the files here and keep them")
    add_record_flag(parser)
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.dir) as scratch:
        calibration = args.calibration or _calibrated(args.model, Path(scratch) / "statistics")
        bench, table = Bench(args, calibration, args.files or Path(scratch)), Table(COLUMNS)
        print(table.head)
        for mode in args.modes:
            for of in ("int8", "int4"):
                for row in bench.rows(mode, of):
                    print(table.add(row), flush=True)
        write_record(args.record, run=table)


if __name__ == "__main__":
    main()
