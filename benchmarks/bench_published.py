"""A checkpoint as it is published, FP8 or MXFP4, through the command line: time and peak RSS.

    python benchmarks/bench_published.py qwen3-30b-a3b-fp8 --layers 16   # a third of its layers
    python benchmarks/bench_published.py gpt-oss-20b --layers 8
    python benchmarks/bench_published.py qwen3.6-35b-a3b-fp8 --layers 12

The checkpoint (random, of the published shape) is generated, goes through inspect, calibrate, plan
and compress, each a process of its own, and is deleted. The disk is checked first. A stage above
3 GiB of resident memory fails the benchmark. --no-checkpoint leaves out the pruned checkpoint,
which in bf16 is the largest file. --stay DIR: the files lie there and stay, and a run that was
stopped goes on after its last whole stage.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from bench_scale import Stage, checkpoint_bytes, stage, stage_table
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
    layers = {"num_hidden_layers": args.layers} if args.layers else {}
    decoded = 0 if args.no_checkpoint else checkpoint_bytes(dict(published.config) | layers)
    needed = source + decoded + parse_size(args.ram) + 2**30
    args.dir.mkdir(parents=True, exist_ok=True)
    try:
        if args.stay is None:
            require_free(args.dir, needed, "this benchmark")
    except UserError as error:
        sys.exit(str(error))
    with _place(args) as directory:
        table, above = _run(Path(directory), args)
        write_record(args.record, stages=table)
    if above:
        sys.exit(f"above {format_size(LIMIT_BYTES)}: {', '.join(above)}")


def _place(args: argparse.Namespace) -> AbstractContextManager[str]:
    if args.stay is None:
        return tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-published-")
    args.stay.mkdir(parents=True, exist_ok=True)
    return nullcontext(str(args.stay))


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
    parser.add_argument("--checkpoint-dtype", default="decoded", help="decoded or source")
    parser.add_argument("--stay", type=Path, help="where the files lie and stay")
    add_record_flag(parser)
    return parser.parse_args()


def _run(directory: Path, args: argparse.Namespace) -> tuple[object, list[str]]:
    model, work = directory / "model", directory / "work"
    start = time.perf_counter()
    config = PUBLISHED[args.shape].config
    if not (model / "config.json").is_file():
        write_full_tokenizer(model, config.get("text_config", config)["vocab_size"])
        write_quantised(model, PUBLISHED[args.shape], args.layers)
    generated = time.perf_counter() - start
    summary = inspect_model(model)
    size = ["--ram", args.ram, "--quant", args.quant, "--calibration", str(work)]
    few = ["--samples", str(args.samples), "--seq-len", str(args.seq_len)]
    form = ["--checkpoint-dtype", args.checkpoint_dtype]
    skip = ["--skip-checkpoint"] if args.no_checkpoint else form
    whole = ["--no-validate", "--no-repair", *skip, "-o", str(directory / "out")]
    commands = [
        ["inspect", str(model)],
        ["calibrate", str(model), *few, "-o", str(work)],
        ["plan", str(model), *size, "-o", str(directory / "plan.json")],
        ["compress", str(model), *size, *whole],
    ]
    stages = [_once(directory, command) for command in commands]
    written = (directory / "out" / "model.gguf").stat().st_size
    table = stage_table(stages)
    print(
        f"{args.shape}, {summary.layers} layers: {format_count(summary.parameters)} parameters, "
        f"{format_size(summary.bytes)} as {', '.join(summary.quantised)}, --ram {args.ram}; "
        f"model.gguf {format_size(written)}; generated in {generated:.0f} s\n\n{table}"
    )
    return table, [done.name for done in stages if done.peak_bytes > LIMIT_BYTES]


def _once(directory: Path, command: Sequence[str]) -> Stage:
    """The stage, or what an earlier process measured of it."""
    file = directory / f"stage-{command[0]}.json"
    if not file.is_file():
        file.write_text(json.dumps(vars(stage(command))))
    return Stage(**json.loads(file.read_text()))


if __name__ == "__main__":
    main()
