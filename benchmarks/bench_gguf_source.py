"""The whole road from a merged Q8_0 GGUF: wall time and peak RSS of every stage.

    python benchmarks/bench_gguf_source.py                  # 3 layers of the size of a 35B-A3B's
    python benchmarks/bench_gguf_source.py --layers 13      # a third of its 40
    python benchmarks/bench_gguf_source.py --source m.gguf  # a file that is there

A random checkpoint of the shape is generated and exported; its GGUF then goes through inspect,
calibrate, plan and compress, each a process of its own, and all is deleted. A layer of experts is
3.0 GiB in float32, 0.8 GiB as it is stored. A stage above 3 GiB of resident memory fails the
benchmark.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench_scale import Stage, checkpoint_bytes, generate, stage, stage_table
from published_configs import PUBLISHED
from records import add_record_flag, write_record

from tenp_edge.disk import require_free
from tenp_edge.errors import UserError
from tenp_edge.models.inspection import inspect_model
from tenp_edge.units import format_count, format_size

LIMIT_BYTES = 3 * 2**30
# The experts, heads and vocabulary of Qwen3.5-35B-A3B in layers of attention alone.
SHAPE: dict[str, Any] = PUBLISHED["Qwen/Qwen3-30B-A3B"][1] | {
    "head_dim": 256,
    "moe_intermediate_size": 512,
    "num_attention_heads": 16,
    "num_experts": 256,
    "num_key_value_heads": 2,
    "vocab_size": 248320,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--ram", default="8GiB", help="the budget")
    parser.add_argument("--quant", help="the type of the file that is made (default: as planned)")
    parser.add_argument("--source", type=Path, help="a GGUF that is there")
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where the files may lie")
    parser.add_argument("--samples", type=int, default=2, help="calibration samples per domain")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--keep", help="the share of the neurons, instead of --ram")
    add_record_flag(parser)
    args = parser.parse_args()
    shape = SHAPE | {"num_hidden_layers": args.layers}
    needed = 0 if args.source else 3 * checkpoint_bytes(shape) + 2**30
    try:
        require_free(args.dir, needed, "this benchmark")
    except UserError as error:
        sys.exit(str(error))
    size = ["--keep", args.keep] if args.keep else ["--ram", args.ram]
    size += ["--quant", args.quant] if args.quant else []
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-gguf-") as directory:
        source = args.source or write_source(Path(directory), shape)
        few = ["--samples", str(args.samples), "--seq-len", str(args.seq_len)]
        summary, stages = inspect_model(source), run(Path(directory), source, size, few)
    table = stage_table(stages)
    print(
        f"{format_count(summary.parameters)} parameters in {format_size(summary.bytes)}, "
        f"{summary.layers} layers, {' '.join(size)}\n\n{table}"
    )
    write_record(args.record, stages=table)
    above = [done.name for done in stages if done.peak_bytes > LIMIT_BYTES]
    if above:
        sys.exit(f"above {format_size(LIMIT_BYTES)}: {', '.join(above)}")


def write_source(directory: Path, shape: dict[str, Any]) -> Path:
    """The merged Q8_0 file of a random checkpoint, which does not stay."""
    model, file = directory / "model", directory / "model-Q8_0.gguf"
    generate(model, shape)
    stage(["export", str(model), "--quant", "Q8_0", "--layout", "merged", "-o", str(file)])
    shutil.rmtree(model)
    return file


def run(directory: Path, source: Path, size: list[str], few: list[str]) -> list[Stage]:
    """Every stage in a fresh process; ``size`` and ``few`` are flags."""
    work, plan, out = (str(directory / name) for name in ("work", "plan.json", "out"))
    planned = [*size, "--calibration", work]
    return [
        stage(["inspect", str(source)]),
        stage(["calibrate", str(source), *few, "-o", work]),
        stage(["plan", str(source), *planned, "-o", plan]),
        stage(["compress", str(source), *planned, *few, "--no-validate", "-o", out]),
    ]


if __name__ == "__main__":
    main()
