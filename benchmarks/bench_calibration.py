"""Calibration against the plain transformers forward: speed ratio and peak memory.

    python benchmarks/bench_calibration.py                 # speed, on a random checkpoint
    python benchmarks/bench_calibration.py --model DIR     # speed, on a checkpoint of yours
    python benchmarks/bench_calibration.py --peak          # peak RSS on a 4 GB random checkpoint

Both speeds are of the same tokens in the same dtype, weights loaded beforehand in transformers and
within the time in calibration; the plain forward leaves the output matrix out, as calibration does.
They alternate, the best of each counts. Peak RSS is that of a fresh process. --cpu-seconds counts
processor time instead of the clock's (on a busy machine, with --threads 1).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from random_checkpoint import write_random_checkpoint
from transformers import AutoModelForCausalLM

from tenp_edge.calibration.collect import calibrate
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.forward.text_batch import Domain, batches

SHAPE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 704,
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "vocab_size": 32000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
# 4 GB in bf16.
BIG = SHAPE | {
    "hidden_size": 2048,
    "head_dim": 128,
    "num_hidden_layers": 7,
    "num_experts": 32,
    "moe_intermediate_size": 1408,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="a checkpoint instead of a random one")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cpu-seconds", action="store_true", help="processor time, not wall time")
    parser.add_argument("--peak", action="store_true", help="peak RSS instead of speed")
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.worker:
        peak_worker(args)
        return
    with tempfile.TemporaryDirectory(dir=".", prefix="bench-calibration-") as scratch:
        model = args.model or write_random_checkpoint(
            Path(scratch) / "model", BIG if args.peak else SHAPE
        )
        for dtype in args.dtype:
            (measure_peak if args.peak else measure_speed)(args, model, Path(scratch), dtype)


def random_domains(checkpoint: Checkpoint, samples: int, seq_len: int) -> list[Domain]:
    generator = torch.Generator().manual_seed(0)
    shape = (samples, seq_len)
    tokens = torch.randint(0, checkpoint.config.vocab_size, shape, generator=generator)
    return [Domain("random", tokens, torch.full((samples,), seq_len))]


def measure_speed(args: argparse.Namespace, path: Path, scratch: Path, dtype: str) -> None:
    clock = time.process_time if args.cpu_seconds else time.perf_counter
    checkpoint = Checkpoint(path)
    domains = random_domains(checkpoint, args.samples, args.seq_len)
    plain: dict[str, float] = {}
    ours = float("inf")
    models = {
        name: AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, dtype), experts_implementation=name
        )
        for name in ("eager", "grouped_mm")
    }
    for number in range(args.repeat):
        for name, model in models.items():
            seconds = timed(lambda model=model: plain_forward(model, domains[0].tokens), clock)
            plain[name] = min(plain.get(name, float("inf")), seconds)
        out = scratch / f"{dtype}-{number}"
        seconds = timed(lambda out=out: calibrate(checkpoint, domains, out, dtype=dtype), clock)
        ours = min(ours, seconds)
    count = args.samples * args.seq_len
    best = min(plain.values())
    row = {f"plain {name} tokens/s": round(count / value) for name, value in plain.items()}
    print(
        json.dumps(
            {"clock": clock.__name__, "dtype": dtype, "threads": args.threads, "tokens": count}
            | row
            | {"calibration tokens/s": round(count / ours), "ratio": round(best / ours, 3)}
        ),
        flush=True,
    )


def timed(run: Any, clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


@torch.no_grad()
def plain_forward(model: Any, tokens: torch.Tensor) -> None:
    for part in batches(*tokens.shape, 8192):
        model.model(tokens[part], use_cache=False)


def measure_peak(args: argparse.Namespace, path: Path, scratch: Path, dtype: str) -> None:
    """Run calibration in a process of its own and print its peak RSS."""
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    command = [sys.executable, __file__, "--worker", str(path), str(scratch / f"peak-{dtype}")]
    options = ["--samples", args.samples, "--seq-len", args.seq_len, "--threads", args.threads]
    subprocess.run([*command, *map(str, options), "--dtype", dtype], check=True)
    print(json.dumps({"checkpoint GB": round(size / 1e9, 2)}), flush=True)


def peak_worker(args: argparse.Namespace) -> None:
    path, out = map(Path, args.worker)
    checkpoint = Checkpoint(path)
    domains = random_domains(checkpoint, args.samples, args.seq_len)
    before = peak_bytes()
    seconds = timed(lambda: calibrate(checkpoint, domains, out, dtype=args.dtype[0]))
    states = args.samples * args.seq_len * checkpoint.config.hidden_size
    row = {
        "dtype": args.dtype[0],
        "peak GiB": round(peak_bytes() / 2**30, 3),
        "imports GiB": round(before / 2**30, 3),
        "hidden states GiB": round(states * getattr(torch, args.dtype[0]).itemsize / 2**30, 3),
        "seconds": round(seconds, 1),
    }
    print(json.dumps(row), flush=True)


def peak_bytes() -> int:
    """Peak RSS of this process (ru_maxrss is in KiB on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
