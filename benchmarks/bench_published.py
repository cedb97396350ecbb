"""A checkpoint as it is published, FP8 or MXFP4, through the command line: time and peak RSS.

    python benchmarks/bench_published.py qwen3-30b-a3b-fp8 --layers 16   # a third of its layers
    python benchmarks/bench_published.py gpt-oss-20b --layers 8
    python benchmarks/bench_published.py qwen3.6-35b-a3b-fp8 --layers 12

The checkpoint (random, of the published shape) is generated, goes through inspect, calibrate, plan
and compress, each a process of its own, and is deleted. The disk is checked first. A stage above
3 GiB of resident memory fails the benchmark. --no-checkpoint leaves out the pruned checkpoint,
which in bf16 is the largest file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from bench_scale import stage, stage_table
from random_quantised import PUBLISHED, quantised_bytes, write_quantised
from random_tokenizer import write_full_tokenizer
from records import add_record_flag, write_record

from tenp_edge.disk import require_free
from tenp_edge.errors import UserError
from tenp_edge.models.inspection import inspect_model
from tenp_edge.units import format_count, format_size, parse_size

LIMIT_BYTES = 3 * 2**30


def main() -> None:
    args = _arguments()
    published = PUBLISHED[args.shape]
    source = quantised_bytes(published, args.layers)
    decoded = 0 if args.no_checkpoint else 2 * 2 * source  # FP4 is a quarter of bf16
    needed = source + decoded + parse_size(args.ram) + 2**30
    args.dir.mkdir(parents=True, exist_ok=True)
    try:
        require_free(args.dir, needed, "this benchmark")
    except UserError as error:
        sys.exit(str(error))
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-published-") as directory:
        table, above = _run(Path(directory), args)
        write_record(args.record, stages=table)
    if above:
        sys.exit(f"above {format_size(LIMIT_BYTES)}: {', '.join(above)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shape", choices=sorted(PUBLISHED))
    parser.add_argument("--layers", type=int, help="fewer layers than the real model")
    parser.add_argument("--ram", default="8GiB", help="the budget")
    parser.add_argument("--quant", default="Q8_0", help="the type of the GGUF")
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where the files may lie")
    parser.add_argument("--samples", type=int, default=2, help="calibration samples per domain")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--no-checkpoint", action="store_true", help="no pruned checkpoint")
    add_record_flag(parser)
    return parser.parse_args()


def _run(directory: Path, args: argparse.Namespace) -> tuple[object, list[str]]:
    model, work = directory / "model", directory / "work"
    start = time.perf_counter()
    write_quantised(model, PUBLISHED[args.shape], args.layers)
    config = PUBLISHED[args.shape].config
    write_full_tokenizer(model, config.get("text_config", config)["vocab_size"])
    generated = time.perf_counter() - start
    summary = inspect_model(model)
    size = ["--ram", args.ram, "--quant", args.quant, "--calibration", str(work)]
    few = ["--samples", str(args.samples), "--seq-len", str(args.seq_len)]
    skip = ["--skip-checkpoint"] if args.no_checkpoint else []
    whole = ["--no-validate", "--no-repair", *skip, "-o", str(directory / "out")]
    stages = [
        stage(["inspect", str(model)]),
        stage(["calibrate", str(model), *few, "-o", str(work)]),
        stage(["plan", str(model), *size, "-o", str(directory / "plan.json")]),
        stage(["compress", str(model), *size, *whole]),
    ]
    written = (directory / "out" / "model.gguf").stat().st_size
    table = stage_table(stages)
    print(
        f"{args.shape}, {summary.layers} layers: {format_count(summary.parameters)} parameters, "
        f"{format_size(summary.bytes)} as {', '.join(summary.quantised)}, --ram {args.ram}; "
        f"model.gguf {format_size(written)}; generated in {generated:.0f} s\n\n{table}"
    )
    return table, [done.name for done in stages if done.peak_bytes > LIMIT_BYTES]


if __name__ == "__main__":
    main()
