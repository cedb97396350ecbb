"""Quantising against llama_model_quantize: speed ratio on the same weights, and peak memory.

    python benchmarks/bench_quant.py                       # speed, on a random checkpoint
    python benchmarks/bench_quant.py --peak                # peak RSS of an export, 4 GB checkpoint

Both read bf16 and write a merged file of the same bytes, with and without an importance matrix; the
two alternate, the best of each counts. llama.cpp reads the GGUF that we wrote as BF16, we read the
checkpoint. Peak RSS is that of a fresh process; its files lie in a temporary directory (--work).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from random_checkpoint import write_random_checkpoint
from records import Table, add_record_flag, write_record

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.llama_quantize import Floats, quantize
from support.tiny import write_tokenizer

from tenp_edge.calibration.collect import calibrate
from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import load_statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.base import ExportData, ExportOptions
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.forward.text_batch import Domain

SHAPE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 3,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 24,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "vocab_size": 8192,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
# 4.1 GB in bf16.
BIG = SHAPE | {"num_hidden_layers": 14, "num_experts": 32, "moe_intermediate_size": 1408}
BIG |= {"hidden_size": 1024, "vocab_size": 32000}

SPEEDS = (
    ("", "{what}"),
    ("llama.cpp", "{theirs:#.3g} s"),
    ("ours", "{ours:#.3g} s"),
    ("ratio", "{ratio:.2f}"),
)
PEAKS = (
    ("type", "{quant}"),
    ("layout", "{layout}"),
    ("checkpoint", "{checkpoint:size}"),
    ("file", "{file:size}"),
    ("seconds", "{seconds:.1f}"),
    ("peak RSS", "{peak:size}"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quants", default="Q8_0,Q6_K,Q4_K_M,IQ4_NL,Q4_0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", action="store_true", help="peak RSS on the 4 GB checkpoint")
    parser.add_argument("--work", type=Path, help="where temporary files go")
    add_record_flag(parser)
    parser.add_argument("--export", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.export:
        print(json.dumps(_export_alone(*given.export)))
        return
    with tempfile.TemporaryDirectory(dir=given.work) as name:
        work, quants = Path(name), given.quants.split(",")
        rows = _peak(work, quants) if given.peak else _speed(work, quants, given)
        table = Table(PEAKS if given.peak else SPEEDS, rows)
        print(table)
        write_record(given.record, **{"peaks" if given.peak else "speeds": table})


def _prepare(work: Path, config: dict[str, Any]) -> Checkpoint:
    write_random_checkpoint(work / "model", config)
    write_tokenizer(work / "model")
    checkpoint = Checkpoint(work / "model")
    tokens = torch.randint(0, 300, (4, 128), generator=torch.Generator().manual_seed(0))
    domain = Domain("random", tokens, torch.full((4,), 128))
    calibrate(checkpoint, [domain], work / "statistics")
    return checkpoint


def _speed(work: Path, quants: list[str], given: argparse.Namespace) -> list[dict[str, Any]]:
    checkpoint = _prepare(work, SHAPE)
    data = ExportData(Importance(load_statistics(work / "statistics")))
    source, dense = ModelSource(checkpoint), work / "bf16.gguf"
    options = ExportOptions("BF16", "merged", imatrix_file=str(work / "imatrix.gguf"))
    EXPORTER.write(source, options, dense, data)
    matrix = _means(work / "imatrix.gguf")
    rows = []
    for quant in quants:
        for imatrix in (False, True):
            ours, theirs = [], []
            for _ in range(given.repeats):
                start = time.perf_counter()
                wanted = {"imatrix": matrix} if imatrix else {}
                quantize(dense, work / "theirs.gguf", quant, threads=given.threads, **wanted)
                theirs.append(time.perf_counter() - start)
                start = time.perf_counter()
                chosen = ExportOptions(quant, "merged", imatrix)
                EXPORTER.write(source, chosen, work / "ours.gguf", data)
                ours.append(time.perf_counter() - start)
            rows.append(
                {
                    "what": f"{quant}, importance matrix" if imatrix else quant,
                    "theirs": min(theirs),
                    "ours": min(ours),
                    "ratio": min(theirs) / min(ours),
                }
            )
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _means(file: Path) -> dict[str, Floats]:
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    means: dict[str, Floats] = {}
    for name, sums in stored.items():
        if name.endswith(".in_sum2"):
            name = name.removesuffix(".in_sum2")
            counts = np.maximum(stored[f"{name}.counts"].reshape(-1, 1), 1)
            means[name] = sums.reshape(len(counts), -1) / counts
    return means


def _peak(work: Path, quants: list[str]) -> list[dict[str, Any]]:
    checkpoint = _prepare(work, BIG)
    rows: list[dict[str, Any]] = []
    for quant in quants:
        for layout in ("merged", "per-expert"):
            arguments = [str(checkpoint.path), str(work / "statistics"), quant, layout]
            command = [sys.executable, __file__, "--export", *arguments]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout))
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


def _export_alone(model: str, statistics: str, quant: str, layout: str) -> dict[str, Any]:
    checkpoint = Checkpoint(Path(model))
    data = ExportData(Importance(load_statistics(Path(statistics))))
    start = time.perf_counter()
    target = Path(model).with_name("peak.gguf")
    options = ExportOptions(quant, layout, imatrix=True)
    manifest = EXPORTER.write(ModelSource(checkpoint), options, target, data)
    return {
        "quant": quant,
        "layout": layout,
        "checkpoint": sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
        "file": manifest.file_bytes,
        "seconds": time.perf_counter() - start,
        "peak": _peak_rss_bytes(),
    }


def _peak_rss_bytes() -> int:
    """VmHWM of this process: ru_maxrss would count what the parent held when it started us."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    main()
