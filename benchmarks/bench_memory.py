"""Predicted against measured peak RSS of exported files, over types, contexts, caches and ubatches.

    python benchmarks/bench_memory.py --dir DIR            # files of 1 to 1.5 GB, half an hour
    python benchmarks/bench_memory.py --dir DIR --types Q8_0 --layouts per-expert

A random checkpoint (2 billion parameters, bf16, 4 GB) is written to DIR, pruned so that each type
makes a file of at least 1 GB, exported, run and deleted. A prediction that is below the measured
peak, or more than 3 % above it, fails the benchmark.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from random_checkpoint import write_random_checkpoint
from random_tokenizer import write_full_tokenizer

from tenp_edge.checkpoint import Checkpoint
from tenp_edge.devices import this_machine
from tenp_edge.disk import require_free
from tenp_edge.footprint import MemoryRun
from tenp_edge.plan import CompressionPlan
from tenp_edge.planner import PlanRequest, make_plan
from tenp_edge.progress import QUIET
from tenp_edge.registry import ExportOptions, exporter
from tenp_edge.runtime.peak import measure_peak_rss, predict_peak
from tenp_edge.source import ModelSource
from tenp_edge.units import format_size

SHAPE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 6,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "vocab_size": 50000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}
# What keeps the file of a type just above 1 GB.
KEEPS = {"F16": 0.3, "Q8_0": 0.55, "Q6_K": 0.7, "Q4_K_M": 1.0, "Q4_0": 1.0}
RUNS = (
    MemoryRun(1024, 512, "F16"),
    MemoryRun(4096, 64, "F16"),
    MemoryRun(4096, 512, "Q8_0"),
    MemoryRun(8192, 256, "F32"),
    MemoryRun(16384, 128, "Q8_0"),
    MemoryRun(32768, 512, "F16"),
)
TOLERANCE = 0.03


@dataclass(frozen=True)
class Point:
    """One row of the table, in bytes."""

    layout: str
    quant: str
    file: int
    run: MemoryRun
    predicted: int
    measured: int

    @property
    def error(self) -> float:
        """Prediction over measurement, minus one."""
        return self.predicted / self.measured - 1

    def __str__(self) -> str:
        run = self.run
        cells = (
            self.layout,
            self.quant,
            format_size(self.file),
            run.context,
            run.kv_type,
            run.ubatch,
            format_size(self.predicted),
            format_size(self.measured),
            f"{100 * self.error:+.1f} %",
        )
        return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where the files may lie")
    parser.add_argument("--model", type=Path, help="a checkpoint that is there already")
    parser.add_argument("--types", nargs="+", default=["Q8_0", "Q4_K_M", "Q4_0", "F16"])
    parser.add_argument("--layouts", nargs="+", default=["per-expert", "merged"])
    args = parser.parse_args()
    require_free(args.dir, 6 * 10**9, "this benchmark")
    print("| layout | type | file | context | KV | ubatch | predicted | measured | error |")
    print("|---|---|---|---|---|---|---|---|---|")
    found = []
    with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-memory-") as directory:
        model = args.model or make_model(Path(directory) / "model", SHAPE)
        for quant in args.types:
            for layout in args.layouts:
                plan = plan_of(model, layout, quant, KEEPS[quant])
                for point in sweep(model, Path(directory), plan, layout, quant, RUNS):
                    print(point, flush=True)
                    found.append(point)
    wrong = [point for point in found if not 0 <= point.error <= TOLERANCE]
    errors = sorted(point.error for point in found)
    print(f"\n{len(found)} runs, error {100 * errors[0]:+.1f} % to {100 * errors[-1]:+.1f} %")
    if wrong:
        sys.exit(f"{len(wrong)} predictions are below the peak or more than 3 % above")


def make_model(directory: Path, shape: dict[str, Any]) -> Path:
    """A random checkpoint of ``shape`` with a tokenizer that fills its vocabulary."""
    write_random_checkpoint(directory, shape)
    write_full_tokenizer(directory, shape["vocab_size"])
    return directory


def plan_of(model: Path, layout: str, quant: str, keep: float) -> CompressionPlan:
    """A plan by bytes alone that keeps the first neurons: what they are does not change a byte."""
    method = "tenp" if layout == "per-expert" else "enp"
    request = PlanRequest(keep=keep, method=method, layout=layout, quant=quant, imatrix=False)
    plan = make_plan(Checkpoint(model), this_machine(), request)
    retained = {
        (layer, expert): torch.arange(width, dtype=torch.int32)
        for layer, row in plan.widths.items()
        for expert, width in enumerate(row)
    }
    return replace(plan, retained=retained)


def sweep(
    model: Path,
    directory: Path,
    plan: CompressionPlan,
    layout: str,
    quant: str,
    runs: Sequence[MemoryRun],
) -> Iterator[Point]:
    """Predictions from the file's outline alone, then the file itself, run by run."""
    checkpoint, options = Checkpoint(model), ExportOptions(quant, layout)
    source, writer = ModelSource(checkpoint, plan), exporter("gguf")
    file = directory / f"{layout}.{quant}.gguf"
    writer.write_outline(checkpoint, source.config, options, file)
    predicted = [predict_peak(file, run).total_bytes for run in runs]
    file.unlink()
    size = writer.write(source, options, file, QUIET).file_bytes
    try:
        for run, expected in zip(runs, predicted, strict=True):
            measured = measure_peak_rss(file, **asdict(run))
            yield Point(layout, quant, size, run, expected, measured)
    finally:
        file.unlink()


if __name__ == "__main__":
    main()
