"""Calibration against the plain transformers forward: speed ratio and peak memory.

    python benchmarks/bench_calibration.py                 # speed, on a random checkpoint
    python benchmarks/bench_calibration.py --model DIR     # speed, on a checkpoint of yours
    python benchmarks/bench_calibration.py --peak          # peak RSS on a 4 GB random checkpoint
    python benchmarks/bench_calibration.py --types         # what the losses of types add to it

Both speeds are of the same tokens in the same dtype, weights loaded beforehand in transformers and
within the time in calibration; the plain forward leaves the output matrix out, as calibration does.
They alternate, the best of each counts. Peak RSS is that of a fresh process. --cpu-seconds counts
processor time instead of the clock's (on a busy machine, with --threads 1). --types is the road of
`calibrate --types`: --samples of --seq-len tokens of every domain of the package's text.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from random_checkpoint import write_random_checkpoint
from records import Table, add_record_flag, write_record
from transformers import AutoModelForCausalLM

import tenp_edge
from tenp_edge.calibration.collect import calibrate
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.forward.text_batch import Domain, batches
from tenp_edge.progress import QUIET
from tenp_edge.verbs.calibrate import run_calibrate
from tenp_edge.verbs.measure_types import default_job, rounding_into, rounding_job
from tenp_edge.verbs.options import CalibrationOptions

DEMO = Path(tenp_edge.__file__).parent / "demo_model"
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

Row = dict[str, Any]
SPEEDS = (
    ("model", "{model}"),
    ("dtype", "{dtype}"),
    ("of transformers' default (grouped_mm)", "{grouped_mm:.2f}"),
    ("of its eager experts", "{eager:.2f}"),
)
PEAKS = (
    ("model", "{model}"),
    ("dtype", "{dtype}"),
    ("checkpoint", "{checkpoint_gb:.2f} GB"),
    ("peak RSS", "{peak:size}"),
    ("of it imports", "{imports:size}"),
    ("of it hidden states", "{states:size}"),
    ("seconds", "{seconds:.1f}"),
)
TYPES = (
    ("model", "{model}"),
    ("dtype", "{dtype}"),
    ("calibration, seconds", "{calibration:.1f}"),
    ("losses of types, seconds", "{types:.1f}"),
    ("of calibration", "{share:.2f}"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, help="a checkpoint instead of a random one")
    parser.add_argument("--layers", type=int, help="of the random checkpoint")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cpu-seconds", action="store_true", help="processor time, not wall time")
    parser.add_argument("--peak", action="store_true", help="peak RSS instead of speed")
    parser.add_argument("--types", action="store_true", help="the cost of the losses of types")
    parser.add_argument("--worker", nargs=2, metavar=("MODEL", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--label", default="random", help="the model's name in the table")
    add_record_flag(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.worker:
        peak_worker(args)
        return
    with tempfile.TemporaryDirectory(dir=".", prefix="bench-calibration-") as scratch:
        model = args.model or random_model(args, Path(scratch) / "model")
        name, columns, measure = _task(args)
        table = Table(columns)
        print(table.head)
        for dtype in args.dtype:
            row = measure(args, model, Path(scratch), dtype)
            print(table.add({"model": args.label, "dtype": dtype, **row}), flush=True)
    write_record(args.record, **{name: table})


def _task(args: argparse.Namespace) -> tuple[str, Any, Callable[..., Row]]:
    if args.types:
        return "types", TYPES, measure_types
    return ("peaks", PEAKS, measure_peak) if args.peak else ("speeds", SPEEDS, measure_speed)


def random_model(args: argparse.Namespace, path: Path) -> Path:
    """With the bundled model's tokenizer, so that it can read text."""
    shape = BIG if args.peak else SHAPE
    layers = args.layers or shape["num_hidden_layers"]
    write_random_checkpoint(path, shape | {"num_hidden_layers": layers})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, path / name)
    return path


def random_domains(checkpoint: Checkpoint, samples: int, seq_len: int) -> list[Domain]:
    generator = torch.Generator().manual_seed(0)
    shape = (samples, seq_len)
    tokens = torch.randint(0, checkpoint.config.vocab_size, shape, generator=generator)
    return [Domain("random", tokens, torch.full((samples,), seq_len))]


def measure_speed(args: argparse.Namespace, path: Path, scratch: Path, dtype: str) -> Row:
    """Tokens a second of calibration and of the plain forwards, and its share of theirs."""
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
    row: dict[str, Any] = {"tokens": count, "tokens_per_second": count / ours}
    for name, seconds in plain.items():
        row |= {f"{name}_tokens_per_second": count / seconds, name: seconds / ours}
    return row


def measure_types(args: argparse.Namespace, path: Path, scratch: Path, dtype: str) -> Row:
    """Seconds of a calibration, and of what `--types` does after it."""
    clock = time.process_time if args.cpu_seconds else time.perf_counter
    checkpoint, out = Checkpoint(path), scratch / f"types-{dtype}"
    options = CalibrationOptions((), args.samples, args.seq_len, dtype=dtype)
    start = clock()
    statistics = run_calibrate(path, out, options)
    calibration = clock() - start
    job = rounding_job(default_job().writer, default_job().options)
    assert job is not None and statistics.has_rounding
    types = timed(lambda: rounding_into(checkpoint, job, statistics, out, options, QUIET), clock)
    return {"calibration": calibration, "types": types, "share": types / calibration}


def timed(run: Any, clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


@torch.no_grad()
def plain_forward(model: Any, tokens: torch.Tensor) -> None:
    for part in batches(*tokens.shape, 8192):
        model.model(tokens[part], use_cache=False)


def measure_peak(args: argparse.Namespace, path: Path, scratch: Path, dtype: str) -> Row:
    """Peak RSS of a calibration in a process of its own."""
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    command = [sys.executable, __file__, "--worker", str(path), str(scratch / f"peak-{dtype}")]
    options = ["--samples", args.samples, "--seq-len", args.seq_len, "--threads", args.threads]
    command += [*map(str, options), "--dtype", dtype]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"checkpoint_gb": size / 1e9, **json.loads(done.stdout)}


def peak_worker(args: argparse.Namespace) -> None:
    path, out = map(Path, args.worker)
    checkpoint = Checkpoint(path)
    domains = random_domains(checkpoint, args.samples, args.seq_len)
    before = peak_bytes()
    seconds = timed(lambda: calibrate(checkpoint, domains, out, dtype=args.dtype[0]))
    states = args.samples * args.seq_len * checkpoint.config.hidden_size
    row = {
        "peak": peak_bytes(),
        "imports": before,
        "states": states * getattr(torch, args.dtype[0]).itemsize,
        "seconds": seconds,
    }
    print(json.dumps(row), flush=True)


def peak_bytes() -> int:
    """Peak RSS of this process (ru_maxrss is in KiB on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
