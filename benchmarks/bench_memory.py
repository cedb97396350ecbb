"""Predicted against real peak memory of `tenp-edge run`, over types, layouts, contexts and sizes.

    python benchmarks/bench_memory.py --dir DIR                  # 30 settings, half an hour
    python benchmarks/bench_memory.py --dir DIR --models small   # those of files up to 10 MB

A random checkpoint per size (the largest has 2 billion parameters in bf16, 4 GB) is written to DIR,
pruned, exported, run and deleted, one file at a time. A prediction is made from the file's outline,
before a weight is written. The peak is that of the command `tenp-edge run FILE` in a process of its
own, as the system reports it, with a prompt from all over the vocabulary. A prediction below the
peak fails the benchmark, and one that is more than 3 % and more than 4 MiB above it.
"""

from __future__ import annotations

import argparse
import string
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from random_checkpoint import write_random_checkpoint
from random_tokenizer import write_full_tokenizer
from records import Table, add_record_flag, write_record

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.disk import require_free
from tenp_edge.exporters.base import ExportOptions, exporter
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan
from tenp_edge.runtime.memory.footprint import MemoryRun
from tenp_edge.runtime.memory.peak import DECODE_STEPS, measure_peak_rss, predict_peak

_QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "norm_topk_prob": True,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}
SHAPES: dict[str, dict[str, Any]] = {
    "small": _QWEN3
    | {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 128,
        "vocab_size": 4000,
    },
    "medium": _QWEN3
    | {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 256,
        "vocab_size": 6000,
    },
    "latent": {
        **_QWEN3,
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "kv_lora_rank": 256,
        "q_lora_rank": None,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "moe_intermediate_size": 256,
        "n_routed_experts": 32,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "first_k_dense_replace": 1,
        "norm_topk_prob": False,
        "scoring_func": "softmax",
        "topk_method": "greedy",
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.0,
        "vocab_size": 4000,
    },
    "large": _QWEN3
    | {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 6,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "vocab_size": 16000,
    },
}
SHAPE = SHAPES["large"]
_WIDE, _NARROW = 512, 64  # ubatch
# The rows of the embedding and the experts that a run never reads stay on the disk. The prediction
# counts them, so a fair peak reads them all: vocabularies are small, and tokens differ much.
_EMBEDDING_SCALE = 8.0


@dataclass(frozen=True)
class Setting:
    """One row: a file and a run of it. ``fill``: a prompt that fills the context; else 4096
    tokens, where computing more would take minutes."""

    model: str
    layout: str
    quant: str
    keep: float
    run: MemoryRun
    fill: bool = True

    @property
    def file(self) -> tuple[str, str, str, float]:
        return self.model, self.layout, self.quant, self.keep


def _run(context: int, ubatch: int = _WIDE, kv_type: str = "F16") -> MemoryRun:
    return MemoryRun(context, ubatch, kv_type)


SETTINGS = (
    Setting("small", "per-expert", "F16", 0.7, _run(512)),
    Setting("small", "per-expert", "F16", 0.7, _run(4096, _NARROW, "F32")),
    Setting("small", "per-expert", "F16", 0.7, _run(16384)),
    Setting("small", "per-expert", "Q4_0", 0.7, _run(512, 32, "Q8_0")),
    Setting("small", "per-expert", "Q4_0", 0.7, _run(8192, 256)),
    Setting("small", "merged", "Q8_0", 0.75, _run(512)),
    Setting("small", "merged", "Q8_0", 0.75, _run(2048, 128, "Q8_0")),
    Setting("small", "padded", "F32", 0.6, _run(1024, _NARROW)),
    Setting("small", "padded", "F32", 0.6, _run(16384, _WIDE, "F32")),
    Setting("medium", "per-expert", "Q8_0", 0.6, _run(512)),
    Setting("medium", "per-expert", "Q8_0", 0.6, _run(4096, 256)),
    Setting("medium", "per-expert", "Q4_K_M", 0.75, _run(2048, _WIDE, "Q8_0")),
    Setting("medium", "per-expert", "Q4_K_M", 0.75, _run(8192, 1024)),
    Setting("medium", "per-expert", "F16", 0.5, _run(1024, _NARROW, "F32")),
    Setting("medium", "merged", "Q6_K", 0.5, _run(1024)),
    Setting("medium", "merged", "IQ4_XS", 1.0, _run(4096, 256, "Q8_0")),
    Setting("medium", "padded", "Q8_0", 0.6, _run(2048)),
    Setting("latent", "per-expert", "Q8_0", 0.6, _run(512, _NARROW)),
    Setting("latent", "per-expert", "Q8_0", 0.6, _run(4096)),
    Setting("latent", "merged", "Q4_K_M", 1.0, _run(1024, 256)),
    Setting("large", "per-expert", "Q4_K_M", 1.0, _run(1024)),
    Setting("large", "per-expert", "Q4_K_M", 1.0, _run(4096, _WIDE, "Q8_0")),
    Setting("large", "per-expert", "Q4_K_M", 1.0, _run(32768), fill=False),
    Setting("large", "per-expert", "F16", 0.35, _run(8192, 256, "F32"), fill=False),
    Setting("large", "per-expert", "F16", 0.35, _run(2048, _NARROW)),
    Setting("large", "per-expert", "Q8_0", 0.6, _run(4096)),
    Setting("large", "merged", "Q4_0", 1.0, _run(4096)),
    Setting("large", "merged", "Q4_0", 1.0, _run(16384, 128, "Q8_0"), fill=False),
    Setting("large", "merged", "Q4_0", 1.0, _run(32768), fill=False),
    Setting("large", "padded", "Q8_0", 0.7, _run(2048, 256)),
)
LEAST_PROMPT = 4096
TOLERANCE_RATIO, TOLERANCE_BYTES = 0.03, 4 * 2**20


@dataclass(frozen=True)
class Point:
    """One row of the table, in bytes."""

    setting: Setting
    file: int
    prompt: int
    predicted: int
    measured: int

    @property
    def error(self) -> int:
        """Prediction minus measurement."""
        return self.predicted - self.measured

    @property
    def holds(self) -> bool:
        above = max(TOLERANCE_RATIO * self.measured, TOLERANCE_BYTES)
        return 0 <= self.error <= above

    @property
    def row(self) -> dict[str, Any]:
        run = self.setting.run
        return {
            "layout": self.setting.layout,
            "type": self.setting.quant,
            "file": self.file,
            "context": run.context,
            "prompt": self.prompt,
            "kv": run.kv_type,
            "ubatch": run.ubatch,
            "predicted": self.predicted,
            "measured": self.measured,
            "above_mib": self.error / 2**20,
            "above_percent": 100 * self.error / self.measured,
        }


COLUMNS = (
    ("layout", "{layout}"),
    ("type", "{type}"),
    ("file", "{file:size}"),
    ("context", "{context}"),
    ("prompt", "{prompt}"),
    ("KV", "{kv}"),
    ("ubatch", "{ubatch}"),
    ("predicted", "{predicted:size}"),
    ("measured", "{measured:size}"),
    ("above", "{above_mib:+.1f} MiB"),
    ("", "{above_percent:+.1f} %"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where the files may lie")
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    add_record_flag(parser)
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    require_free(args.dir, 6 * 10**9 if "large" in args.models else 10**9, "this benchmark")
    table = Table(COLUMNS)
    print(table.head)
    points = []
    for name in args.models:
        settings = [setting for setting in SETTINGS if setting.model == name]
        with tempfile.TemporaryDirectory(dir=args.dir, prefix="bench-memory-") as directory:
            model = make_model(Path(directory) / "model", SHAPES[name])
            for _file, group in groupby(settings, key=lambda setting: setting.file):
                for point in sweep(model, Path(directory), list(group)):
                    print(table.add(point.row), flush=True)
                    points.append(point)
    write_record(args.record, peaks=table)
    errors = sorted(100 * point.error / point.measured for point in points)
    print(f"\n{len(points)} runs, prediction {errors[0]:+.1f} % to {errors[-1]:+.1f} % of the peak")
    wrong = [point for point in points if not point.holds]
    if wrong:
        sys.exit(f"{len(wrong)} predictions are below the peak, or 3 % and 4 MiB above it")


def make_model(directory: Path, shape: dict[str, Any]) -> Path:
    """A random checkpoint of ``shape`` with a tokenizer that fills its vocabulary."""
    write_random_checkpoint(directory, shape, embedding_scale=_EMBEDDING_SCALE)
    write_full_tokenizer(directory, shape["vocab_size"], string.ascii_letters)
    return directory


def plan_of(model: Path, layout: str, quant: str, keep: float) -> CompressionPlan:
    """A plan by bytes alone that keeps the first neurons: what they are does not change a byte."""
    method = "enp" if layout == "merged" else "tenp"
    request = PlanOptions(keep=keep, method=method, layout=layout, quant=quant, imatrix=False)
    plan = make_plan(Checkpoint(model), this_machine(), request)
    retained = {
        (layer, expert): torch.arange(width, dtype=torch.int32)
        for layer, row in plan.widths.items()
        for expert, width in enumerate(row)
    }
    return replace(plan, retained=retained)


def sweep(model: Path, directory: Path, settings: Sequence[Setting]) -> Iterator[Point]:
    """Predictions from the file's outline alone, then the file itself, run by run. All
    ``settings`` are of one file."""
    _, layout, quant, keep = settings[0].file
    checkpoint, options = Checkpoint(model), ExportOptions(quant, layout)
    source = ModelSource(checkpoint, plan_of(model, layout, quant, keep))
    writer, file = exporter("gguf"), directory / f"{layout}.{quant}.gguf"
    writer.write_outline(checkpoint, source.config, options, file)
    predicted = [predict_peak(file, setting.run).total_bytes for setting in settings]
    file.unlink()
    size = writer.write(source, options, file).file_bytes
    try:
        for setting, expected in zip(settings, predicted, strict=True):
            room = setting.run.context - DECODE_STEPS
            prompt = room if setting.fill else min(LEAST_PROMPT, room)
            measured = measure_peak_rss(file, **asdict(setting.run), prompt_tokens=prompt)
            yield Point(setting, size, prompt, expected, measured)
    finally:
        file.unlink()


if __name__ == "__main__":
    main()
