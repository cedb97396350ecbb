"""What loading a big ONNX graph costs: 48 layers of 128 experts, tiny widths, real exporter.

    python benchmarks/bench_onnx_load.py --dir DIR

CPU seconds (user), and growth of the peak memory, of a fresh process as it opens an onnxruntime
session: for several numbers of experts under one If (1 is an If per expert), and session options.
--blocks and --options choose; DIR is kept, so a second run only loads.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from random_checkpoint import write_random_checkpoint
from records import Table, add_record_flag, write_record

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.onnx import EXPORTER
from tenp_edge.exporters.onnx.graph import dispatch_rows

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "no-optimisation": {"graph_optimization_level": 0},
    "no-reuse": {"enable_mem_reuse": False},
}


def big_config(layers: int, experts: int, hidden: int = 64, width: int = 32) -> dict[str, Any]:
    """A qwen3_moe of many experts and little else."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "num_experts": experts,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": width,
        "norm_topk_prob": True,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "vocab_size": 384,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def export(checkpoint: Path, directory: Path, block: int) -> Path:
    """``checkpoint`` as ONNX with ``block`` experts under one If; the graph's file."""
    standard = dispatch_rows.BLOCK
    dispatch_rows.BLOCK = block
    try:
        source = ModelSource(Checkpoint(checkpoint))
        EXPORTER.write(source, ExportOptions("none"), directory)
    finally:
        dispatch_rows.BLOCK = standard
    return directory / "model.onnx"


def load_seconds(graph: Path, options: str = "defaults") -> dict[str, float]:
    """CPU seconds, and growth of the peak memory, of a fresh process as it opens ``graph``."""
    command = [sys.executable, __file__, "--load", str(graph), "--options", options]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(output)
    return found


def load(graph: Path, options: str = "defaults") -> dict[str, float]:
    """CPU seconds, and growth of the peak memory, of this process as it opens ``graph``."""
    import onnxruntime

    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads, chosen.log_severity_level = 1, 3
    for name, value in OPTIONS[options].items():
        kind = type(getattr(chosen, name))
        setattr(chosen, name, kind(value))
    memory, before = _peak_mib(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    onnxruntime.InferenceSession(str(graph), chosen, providers=["CPUExecutionProvider"])
    seconds = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
    return {"cpu_seconds": seconds, "rss_mib": _peak_mib() - memory}


def _peak_mib() -> float:
    """Peak memory of this process; ru_maxrss would count the parent that started it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


COLUMNS = (
    ("experts per `If`", "{block}"),
    ("options", "{options}"),
    ("CPU seconds", "{cpu_seconds:.1f}"),
    ("peak MiB", "{rss_mib:.0f}"),
)


def table(
    directory: Path, layers: int, experts: int, blocks: Sequence[int], options: Sequence[str]
) -> Table:
    checkpoint = directory / f"{layers}x{experts}"
    if not (checkpoint / "config.json").exists():
        write_random_checkpoint(checkpoint, big_config(layers, experts))
    table = Table(COLUMNS)
    print(table.head)
    for block in blocks:
        target = directory / f"{layers}x{experts}-{block}"
        graph = target / "model.onnx"
        if not (target / "tenp.json").exists():
            export(checkpoint, target, block)
        for name in options:
            row = {"block": block, "options": name, **load_seconds(graph, name)}
            print(table.add(row), flush=True)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dir", type=Path, default=Path("onnx-load"))
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--load", type=Path, help="only open this graph and print what it took")
    add_record_flag(parser)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(load(args.load, args.options[0])))
    else:
        made = table(args.dir, args.layers, args.experts, args.blocks, args.options)
        write_record(args.record, loading=made)


if __name__ == "__main__":
    main()
