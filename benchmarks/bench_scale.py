"""A 14-billion-parameter model through the command line: wall time and peak RSS of every stage.

    python benchmarks/bench_scale.py             # 28.6 GB checkpoint, --ram 8GiB
    python benchmarks/bench_scale.py --quarter   # 6 of its 24 layers, --ram 2.5GiB
    python benchmarks/bench_scale.py --quant Q4_K_M

The checkpoint (Qwen1.5-MoE's shape, random, bf16, sharded) is generated, goes through inspect,
calibrate, plan and compress, each a process of its own, and is deleted. The disk is checked first.
A stage above 6 GiB of resident memory fails the benchmark. --model keeps the checkpoint in a
directory for the next run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from random_checkpoint import SHAPES, write_random_checkpoint
from random_tokenizer import write_full_tokenizer
from records import Table, add_record_flag, write_record

from tenp_edge.disk import require_free
from tenp_edge.errors import UserError
from tenp_edge.models import FAMILIES, expected_tensors, read_config
from tenp_edge.models.inspection import inspect_model
from tenp_edge.units import format_count, format_size, parse_size

LIMIT_BYTES = 6 * 2**30
QUARTER_LAYERS = 6


@dataclass(frozen=True)
class Stage:
    """One command: what it took."""

    name: str
    seconds: float
    peak_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quarter", action="store_true", help="a quarter of the layers")
    parser.add_argument("--ram", help="the budget (default: 8GiB, a quarter: 2.5GiB)")
    parser.add_argument("--quant", default="Q8_0", help="the type of the GGUF")
    parser.add_argument("--model", type=Path, help="where the checkpoint is, or goes, to stay")
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where the files may lie")
    parser.add_argument("--samples", type=int, default=2, help="calibration samples per domain")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--repair", action="store_true", help="compress again, repaired")
    add_record_flag(parser)
    args = parser.parse_args()
    shape = dict(SHAPES["qwen1.5-moe-14b"])
    if args.quarter:
        shape["num_hidden_layers"] = QUARTER_LAYERS
    ram = args.ram or ("2.5GiB" if args.quarter else "8GiB")
    stored = args.model is not None and (args.model / "config.json").is_file()
    files = 2 if args.repair else 1
    needed = (0 if stored else checkpoint_bytes(shape)) + files * parse_size(ram) + 2**30
    args.dir.mkdir(parents=True, exist_ok=True)
    try:
        require_free(args.dir, needed, "this benchmark")
    except UserError as error:
        sys.exit(str(error))
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-scale-") as directory:
        model = args.model or Path(directory) / "model"
        made = "" if stored else f"; generated in {generate(model, shape):.0f} s"
        few = ["--samples", str(args.samples), "--seq-len", str(args.seq_len)]
        title, stages = run(
            Path(directory), model, ["--ram", ram, "--quant", args.quant], few, args.repair
        )
        table = stage_table(stages)
        print(f"{title}{made}\n\n{table}")
        write_record(args.record, stages=table)
    above = [done.name for done in stages if done.peak_bytes > LIMIT_BYTES]
    if above:
        sys.exit(f"above {format_size(LIMIT_BYTES)}: {', '.join(above)}")


def generate(model: Path, shape: dict[str, Any]) -> float:
    """Write the checkpoint; the seconds it took."""
    start = time.perf_counter()
    write_random_checkpoint(model, shape)
    write_full_tokenizer(model, shape["vocab_size"])
    return time.perf_counter() - start


def run(
    directory: Path, model: Path, size: list[str], few: list[str], repair: bool
) -> tuple[str, list[Stage]]:
    """A title and every stage, each in a fresh process; ``size`` and ``few`` are flags."""
    summary = inspect_model(model)
    title = (
        f"{format_count(summary.parameters)} parameters, {format_size(summary.bytes)} in "
        f"{summary.files} files, {' '.join(size)}"
    )
    work = str(directory / "work")
    size = [*size, "--calibration", work]
    whole = ["compress", str(model), *size, "--skip-checkpoint", "--no-validate"]
    stages = [
        stage(["inspect", str(model)]),
        stage(["calibrate", str(model), *few, "-o", work]),
        stage(["plan", str(model), *size, "-o", str(directory / "plan.json")]),
        stage([*whole, "--no-repair", "-o", str(directory / "out")]),
    ]
    if repair:
        command = [*whole, *few, "-o", str(directory / "repaired")]
        stages.append(replace(stage(command), name="compress, repaired"))
    written = (directory / "out" / "model.gguf").stat().st_size
    return f"{title}; model.gguf {format_size(written)}", stages


# ru_maxrss would count what this process held when it forked; VmHWM starts anew with exec.
_CHILD = """
import atexit, sys
def report():
    from tenp_edge.runtime.memory.resident import peak_rss_bytes
    peak = peak_rss_bytes()
    print(f"PEAK {peak}", file=sys.__stdout__)
atexit.register(report)
from tenp_edge.cli.main import main
main()
"""


def stage(arguments: Sequence[str]) -> Stage:
    """Run one tenp-edge command in a process of its own, which tells its peak at the end."""
    start = time.perf_counter()
    command = [sys.executable, "-c", _CHILD, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"tenp-edge {' '.join(arguments)} failed with exit {done.returncode}")
    return Stage(arguments[0], seconds, int(done.stdout.rsplit("PEAK ", 1)[1]))


def checkpoint_bytes(shape: dict[str, Any]) -> int:
    """Bytes of the bf16 weights of ``shape``."""
    total = 0
    for spec in expected_tensors(read_config(shape, FAMILIES)):
        count = 2
        for size in spec.shape:
            count *= size
        total += count
    return total


def stage_table(stages: Sequence[Stage], what: str = "stage") -> Table:
    """``what``: the heading of the stages' names."""
    cells = [(what, "{stage}"), ("seconds", "{seconds:.1f}"), ("peak RSS", "{peak_bytes:size}")]
    return Table(
        cells,
        [{"stage": s.name, "seconds": s.seconds, "peak_bytes": s.peak_bytes} for s in stages],
    )


if __name__ == "__main__":
    main()
