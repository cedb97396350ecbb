"""Time per layer of every ONNX mode: ragged widths against the unpruned and the uniform model.

    python benchmarks/bench_onnx.py DIR --prepare     # exports, about 5 GB, not timed
    python benchmarks/bench_onnx.py DIR               # one run: the table

The model is random (two layers of hidden 1,024, 64 experts of 512 neurons, top-8). "ragged" keeps a
quarter of the experts whole and gives the others one of five narrower widths, "uniform" gives all
of them the ragged mean, "narrow" only 32 neurons. Decode runs one token after 128, prefill 128 and
512 tokens at once, all in milliseconds per layer. The four models of a mode take turns, each input
counts with its fastest round: other tenants of a machine disturb all of them alike.

ideal: what a layer would take if its experts' time fell as their mean width does. The experts'
time is what lies between "unpruned" and "narrow" of the same mode.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from random_checkpoint import write_random_checkpoint
from records import Table, add_record_flag, write_record

from tenp_edge.checkpoint.compression_plan import CompressionPlan, Widths
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.onnx import EXPORTER

LAYERS, EXPERTS, FULL, NARROW, PAST = 2, 64, 512, 32, 128
TIERS = (128, 192, 256, 320, 384)
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": EXPERTS,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": FULL,
    "norm_topk_prob": True,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "vocab_size": 256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
WAYS = (
    ("portable", "none"),
    ("portable", "int8"),
    ("portable", "int4"),
    ("ort-cpu", "none"),
    ("ort-cpu", "int8"),
    ("ort-cpu", "int4"),
)
# (rows, past, inputs, rounds); another token at decode hits other experts
STEPS = {"1": (1, PAST, 8, 8), "128": (128, 0, 1, 5), "512": (512, 0, 1, 3)}

COLUMNS = (
    ("mode", "{mode}"),
    ("widths", "{widths}"),
    ("1 token", "{1:.3f}"),
    ("128", "{128:.3f}"),
    ("512", "{512:.3f}"),
    ("of ideal: 1", "{1 ideal:.0%}"),
    ("128", "{128 ideal:.0%}"),
    ("512", "{512 ideal:.0%}"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--prepare", action="store_true", help="export, do not time")
    parser.add_argument("--ways", default="all", help="mode/quant, separated by commas")
    parser.add_argument("--threads", type=int, default=2)
    add_record_flag(parser)
    args = parser.parse_args()
    ways = [way for way in WAYS if args.ways == "all" or "/".join(way) in args.ways.split(",")]
    if args.prepare:
        prepare(args.dir, ways)
        return
    table = Table(COLUMNS)
    print(table.head)
    for mode, quant in ways:
        base = args.dir / mode / quant
        times = measure({plan: base / plan for plan in widths_by_name()}, args.threads)
        for plan, taken in times.items():
            row: dict[str, Any] = {"mode": f"{mode} {quant}", "widths": plan, **taken}
            row |= {f"{step} ideal": share for step, share in of_ideal(times, plan).items()}
            print(table.add(row), flush=True)
    write_record(args.record, layers=table)


def widths_by_name() -> dict[str, Widths]:
    """The four plans, one width per expert of each layer."""
    generator = random.Random(0)
    ragged = {}
    for layer in range(LAYERS):
        row = [FULL] * (EXPERTS // 4)
        row += [TIERS[i % len(TIERS)] for i in range(EXPERTS - len(row))]
        generator.shuffle(row)
        ragged[layer] = tuple(row)
    mean = round(mean_width(ragged) / 32) * 32
    uniform = {"unpruned": FULL, "uniform": mean, "narrow": NARROW}
    plans = {n: dict.fromkeys(range(LAYERS), (w,) * EXPERTS) for n, w in uniform.items()}
    return plans | {"ragged": ragged}


def mean_width(widths: Widths) -> float:
    return sum(map(sum, widths.values())) / (LAYERS * EXPERTS)


def prepare(directory: Path, ways: list[tuple[str, str]]) -> None:
    model = directory / "model"
    if not model.is_dir():
        write_random_checkpoint(model, CONFIG)
    checkpoint = Checkpoint(model)
    for name, widths in widths_by_name().items():
        source = ModelSource(checkpoint, plan_of(checkpoint, widths))
        for mode, quant in ways:
            target = directory / mode / quant / name
            shutil.rmtree(target, ignore_errors=True)
            EXPORTER.write(source, ExportOptions(quant, mode), target)


def plan_of(checkpoint: Checkpoint, widths: Widths) -> CompressionPlan:
    """The first neurons of every expert: the weights are random."""
    retained = {
        (layer, expert): torch.arange(width, dtype=torch.int32)
        for layer, row in widths.items()
        for expert, width in enumerate(row)
    }
    model_type = checkpoint.config.family.model_type
    return CompressionPlan(model_type, checkpoint.fingerprint, FULL, widths, retained)


def measure(directories: Mapping[str, Path], threads: int) -> dict[str, dict[str, float]]:
    """Milliseconds per layer of each plan and step."""
    sessions = {plan: open_session(path, threads) for plan, path in directories.items()}
    found: dict[str, dict[str, float]] = {plan: {} for plan in sessions}
    for step, (rows, past, inputs, rounds) in STEPS.items():
        feeds = [feed(sessions["unpruned"], rows, past, seed) for seed in range(inputs)]
        laps = {plan: np.full((rounds + 1, inputs), np.inf) for plan in sessions}
        for number in range(rounds + 1):  # the first warms up
            for plan, session in sessions.items():
                time.sleep(0.03)  # the threads of the session before still spin
                session.run(["logits"], feeds[0])
                for index, given in enumerate(feeds):
                    start = time.perf_counter()
                    session.run(["logits"], given)
                    laps[plan][number, index] = time.perf_counter() - start
        for plan, table in laps.items():
            found[plan][step] = float(table[1:].min(axis=0).mean()) * 1e3 / LAYERS
    return found


def open_session(directory: Path, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )


def feed(
    session: onnxruntime.InferenceSession, rows: int, past: int, seed: int
) -> Mapping[str, npt.NDArray[Any]]:
    generator = np.random.default_rng(seed)
    given: dict[str, npt.NDArray[Any]] = {
        "input_ids": generator.integers(0, CONFIG["vocab_size"], (1, rows)),
        "attention_mask": np.ones((1, past + rows), np.int64),
        "position_ids": np.arange(past, past + rows)[None],
    }
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            shape = (1, value.shape[1], past, value.shape[3])
            given[value.name] = generator.standard_normal(shape, np.float32)
    return given


def of_ideal(times: Mapping[str, Mapping[str, float]], plan: str) -> dict[str, float]:
    """Share of the ideal speed-up over unpruned that ``plan`` reaches."""
    kept = mean_width(widths_by_name()[plan])
    found = {}
    for step, taken in times[plan].items():
        full, narrow = times["unpruned"][step], times["narrow"][step]
        slope = (full - narrow) / (FULL - NARROW)
        found[step] = (full - slope * (FULL - kept)) / taken
    return found


if __name__ == "__main__":
    main()
