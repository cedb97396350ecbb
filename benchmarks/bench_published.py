"""A checkpoint as it is published, FP8 or MXFP4, or a GGUF of it: time and peak RSS by stage.

    python benchmarks/bench_published.py qwen3-30b-a3b-fp8 --layers 16   # a third of its layers
    python benchmarks/bench_published.py gpt-oss-20b --layers 8
    python benchmarks/bench_published.py qwen3.6-35b-a3b-fp8 --layers 14 --no-checkpoint --gguf

The checkpoint (random, of the published shape) is generated, goes through inspect, calibrate, plan
and compress, each a process of its own, and is deleted. --gguf: then a merged Q8_0 file of it, with
the checkpoint deleted, does the same. The disk is checked first. A stage above 3 GiB of resident
memory fails the benchmark. --no-checkpoint leaves out the pruned checkpoint, which in bf16 is the
largest file. --stay DIR: what was measured lies there and stays, and a run that was stopped goes on
after its last whole stage.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from bench_scale import Stage, checkpoint_bytes, stage, stage_table
from random_quantised import PUBLISHED, quantised_bytes, with_layers, write_quantised
from random_tokenizer import write_full_tokenizer
from records import add_record_flag, write_record

from tenp_edge.disk import require_free
from tenp_edge.errors import UserError
from tenp_edge.models.inspection import inspect_model
from tenp_edge.units import format_count, format_size, parse_size

LIMIT_BYTES = 3 * 2**30


@dataclass(frozen=True)
class Source:
    """A model to start from; ``name``: of what was measured with it."""

    name: str
    model: Path
    stages: list[Stage]

    @property
    def above(self) -> list[str]:
        """The stages that took more than they may."""
        high = [done.name for done in self.stages if done.peak_bytes > LIMIT_BYTES]
        return [f"{stage} of the {self.name}" for stage in high]


def main() -> None:
    args = _arguments()
    args.dir.mkdir(parents=True, exist_ok=True)
    try:
        if args.stay is None:
            require_free(args.dir, _needed(args), "this benchmark")
    except UserError as error:
        sys.exit(str(error))
    with _place(args) as directory:
        found = [*_sources(Path(directory), args)]
        tables = {source.name: stage_table(source.stages) for source in found}
        write_record(args.record, **tables)
    above = [stage for source in found for stage in source.above]
    if above:
        sys.exit(f"above {format_size(LIMIT_BYTES)}: {', '.join(above)}")


def _needed(args: argparse.Namespace) -> int:
    """Bytes of disk: the checkpoint, beside it what is made of it."""
    published = PUBLISHED[args.shape]
    decoded = checkpoint_bytes(with_layers(published.config, args.layers))
    beside = max(0 if args.no_checkpoint else decoded, decoded * 17 // 32 if args.gguf else 0)
    return quantised_bytes(published, args.layers) + beside + parse_size(args.ram) + 2**30


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
    parser.add_argument("--quant", default="Q8_0", help="the type of the GGUF, or auto")
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where the files may lie")
    parser.add_argument("--samples", type=int, default=2, help="calibration samples per domain")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--no-checkpoint", action="store_true", help="no pruned checkpoint")
    parser.add_argument("--checkpoint-dtype", default="decoded", help="decoded or source")
    parser.add_argument("--gguf", action="store_true", help="the same from a merged Q8_0 file too")
    parser.add_argument("--stay", type=Path, help="where the files lie and stay")
    add_record_flag(parser)
    return parser.parse_args()


def _sources(directory: Path, args: argparse.Namespace) -> Iterator[Source]:
    """The checkpoint and, where it was asked for, the GGUF, each with what it took."""
    model, file = directory / "model", directory / "model-Q8_0.gguf"
    if not file.is_file():
        _generate(model, args)
    form = ["--checkpoint-dtype", args.checkpoint_dtype]
    skip = ["--skip-checkpoint"] if args.no_checkpoint else form
    yield _measured("checkpoint", model, directory, args, skip)
    if not args.gguf:
        return
    if not file.is_file():
        made = file.with_suffix(".made")
        stage(["export", str(model), "--quant", "Q8_0", "--layout", "merged", "-o", str(made)])
        made.rename(file)
        shutil.rmtree(model)
    yield _measured("gguf", file, directory, args, [])


def _generate(model: Path, args: argparse.Namespace) -> None:
    if not (model / "config.json").is_file():
        start, config = time.perf_counter(), PUBLISHED[args.shape].config
        write_full_tokenizer(model, config.get("text_config", config)["vocab_size"])
        write_quantised(model, PUBLISHED[args.shape], args.layers)
        print(f"{args.shape} generated in {time.perf_counter() - start:.0f} s")


def _measured(
    name: str, model: Path, directory: Path, args: argparse.Namespace, form: Sequence[str]
) -> Source:
    """Every stage from ``model``; ``form``: flags of the pruned checkpoint."""
    work, out = directory / f"{name}-work", directory / f"{name}-out"
    size = ["--ram", args.ram, "--quant", args.quant, "--calibration", str(work)]
    few = ["--samples", str(args.samples), "--seq-len", str(args.seq_len)]
    whole = ["--no-validate", "--no-repair", *form, "-o", str(out)]
    commands = [
        ["inspect", str(model)],
        ["calibrate", str(model), *few, "-o", str(work)],
        ["plan", str(model), *size, "-o", str(directory / f"{name}-plan.json")],
        ["compress", str(model), *size, *whole],
    ]
    stages = [_once(directory / f"{name}-{c[0]}.json", c) for c in commands]
    source = Source(name, model, stages)
    _report(source, args)
    shutil.rmtree(out, ignore_errors=True)
    return source


def _report(source: Source, args: argparse.Namespace) -> None:
    about = args.shape
    if source.model.exists():
        summary = inspect_model(source.model)
        about += (
            f", {summary.layers} layers: {format_count(summary.parameters)} parameters, "
            f"{format_size(summary.bytes)} as {', '.join(summary.quantised)}"
        )
    print(f"{about}, --ram {args.ram}\n\n{stage_table(source.stages)}\n", flush=True)


def _once(file: Path, command: Sequence[str]) -> Stage:
    """The stage, or what an earlier process measured of it."""
    if not file.is_file():
        file.write_text(json.dumps(vars(stage(command))))
    return Stage(**json.loads(file.read_text()))


if __name__ == "__main__":
    main()
