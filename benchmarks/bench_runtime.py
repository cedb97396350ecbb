"""Speed of the per-expert runtime against stock llama.cpp on the unpruned model, same threads.

    python benchmarks/bench_runtime.py --threads 2 --types Q8_0 Q4_0 Q4_K
    python benchmarks/bench_runtime.py --shape gpt_oss --layers 2 --types Q8_0
    python benchmarks/bench_runtime.py --shape lfm2_moe qwen3_next nemotron_h --types Q8_0
    python benchmarks/bench_runtime.py --threads 1 --layers 2 --types mixed

Random weights in the shapes of Qwen3-MoE (hidden 2048, 64 experts of width 768, top-8), or of
other families in SHAPES. For each type: ``full`` merged in llama.cpp; ``uniform``, the same widths
per expert in ours; ``ragged``, 26 of 64 experts at the full width and the rest at a third in ours.
``--types mixed`` measures experts in types of their own instead (mixed_types.py).
Rounds alternate between the models, so that a slow minute hits all of them: a ratio is the median
over the rounds, a round's decode the median of its tokens.
Ideal speed-ups are ratios of active bytes (decode) and of multiplications (prefill); which experts
the random routers prefer moves both a little. --clock cpu counts the CPU time of all threads, not
the time that passes: for a machine with other work, with OMP_WAIT_POLICY=passive, so that a thread
that waits counts nothing. --files keeps the files (5.8 GB for Q8_0 and Q4_K) for the next call.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import mixed_types
import numpy as np
from mixed_types import MIXED
from published_configs import PUBLISHED
from random_gguf import typed_entries, write_random
from records import Table, add_record_flag, write_record

from tenp_edge.exporters.gguf.types import TYPES
from tenp_edge.models import FAMILIES, ModelConfig, read_config
from tenp_edge.runtime.opening import RunOptions, open_model
from tenp_edge.runtime.session import Session

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_FEW_TOKENS = 512
MODELS = ("full", "uniform", "ragged")
WIDE_SHARE = 26 / 64  # of the experts of ``ragged``; the others have a third of the width
_MULTIPLE = 32  # of every width, as plans have them
_VOCAB: dict[str, Any] = {"vocab_size": 32000, "tie_word_embeddings": False}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "max_position_embeddings": 4096,
        "rope_theta": 1e6,
        **_VOCAB,
    },
    # A quarter and half of their experts, so that a machine of 8 GB holds four layers.
    "qwen3_next": PUBLISHED["Qwen/Qwen3-Next-80B-A3B-Instruct"][1] | {"num_experts": 128, **_VOCAB},
    "qwen3_5_moe": PUBLISHED["Qwen/Qwen3.6-35B-A3B"][1]["text_config"]
    | {"num_experts": 128, **_VOCAB},
    "gpt_oss": PUBLISHED["openai/gpt-oss-20b"][1] | {"layer_types": None, **_VOCAB},
    "gemma4": PUBLISHED["google/gemma-4-26B-A4B"][1]["text_config"]
    | {"vocab_size": 32000, "tie_word_embeddings": True},
    "glm4_moe_lite": PUBLISHED["zai-org/GLM-4.7-Flash"][1]
    | {"num_nextn_predict_layers": 0, **_VOCAB},
    # A dense and three routed layers, one of them attending, as three of four are convolutions.
    "lfm2_moe": PUBLISHED["LiquidAI/LFM2-8B-A1B"][1] | {"num_dense_layers": 1, "vocab_size": 32000},
    # One layer each of Mamba2 and attention and two of experts in four.
    "nemotron_h": PUBLISHED["nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"][1]
    | {"hybrid_override_pattern": "ME*EMEME", **_VOCAB},
}


@dataclass(frozen=True)
class Speeds:
    """Medians; ``*_x_full``: speed over that of the full model in the same round;
    ``first_token_seconds``: a fresh process, from opening to the first token."""

    type: str
    model: str
    file_bytes: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    prefill_x_full: float
    decode_x_full: float
    first_token_seconds: float


def main() -> None:
    arguments = _arguments()
    if arguments.first_token is not None:
        print(_first_token(arguments.first_token, arguments.threads))
        return
    if arguments.types == [MIXED]:
        _bench_mixed(arguments)
        return
    results = {shape: _bench_shape(shape, arguments) for shape in arguments.shape}
    if arguments.make_files:
        return
    rows = [
        row
        for shape, found in results.items()
        for row in beside_full(found, arguments.threads, shape, arguments.layers)
    ]
    write_record(arguments.record, speeds=Table(COLUMNS, rows))
    if arguments.json is not None:
        stored = {shape: [asdict(row) for row in found] for shape, found in results.items()}
        arguments.json.write_text(json.dumps(stored, indent=2) + "\n")


def _bench_shape(shape: str, arguments: argparse.Namespace) -> list[Speeds]:
    """Of every type; none where only the files are to be made."""
    results: list[Speeds] = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind in arguments.types:
            files = _make_files(shape, kind, arguments.files or Path(scratch), arguments.layers)
            results += [] if arguments.make_files else _bench_type(kind, files, arguments)
    if results:
        print(shape)
        _report(results, shape, arguments.layers)
    return results


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", nargs="+", choices=sorted(SHAPES), default=["qwen3_moe"])
    parser.add_argument("--types", nargs="+", default=["Q8_0", "Q4_0", "Q4_K"])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--decode", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--files", type=Path, help="make the files here and keep them")
    parser.add_argument("--make-files", action="store_true", help="only make them, measure nothing")
    parser.add_argument("--json", type=Path)
    add_record_flag(parser)
    parser.add_argument("--first-token", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def _bench_mixed(arguments: argparse.Namespace) -> None:
    """The experts alone are of interest, so there is hardly any vocabulary."""
    (shape,) = arguments.shape
    config = replace(config_of(shape, "ragged", arguments.layers), vocab_size=_FEW_TOKENS)
    numbers = arguments.threads, arguments.prompt, arguments.decode, arguments.rounds
    sizes = mixed_types.Sizes(*numbers, CLOCKS[arguments.clock])
    with tempfile.TemporaryDirectory() as scratch:
        speeds = mixed_types.measure(config, arguments.files or Path(scratch), sizes)
    mixed_types.report(speeds, arguments.prompt)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(asdict(speeds), indent=2) + "\n")


# -- files -----------------------------------------------------------------------------------------


def config_of(shape: str, model: str, layers: int) -> ModelConfig:
    """The shape with the widths of ``model``."""
    raw = SHAPES[shape] | {"num_hidden_layers": layers}
    if raw.get("layer_types"):
        raw["layer_types"] = raw["layer_types"][:layers]
    if raw.get("hybrid_override_pattern"):
        raw["hybrid_override_pattern"] = raw["hybrid_override_pattern"][:layers]
    config = read_config(raw, FAMILIES)
    full, count = config.moe_intermediate_size, config.num_experts
    row = (full,) * count
    if model == "ragged":
        chosen = np.random.default_rng(0).permutation(count)[: round(WIDE_SHARE * count)]
        narrow = full // 3 // _MULTIPLE * _MULTIPLE
        row = tuple(full if expert in chosen else narrow for expert in range(count))
    return replace(config, expert_widths=dict.fromkeys(config.moe_layers, row))


def layout_of(model: str) -> str:
    return "merged" if model == "full" else "per-expert"


def write_file(config: ModelConfig, layout: str, kind: str, file: Path) -> None:
    write_random(config, layout, lambda entry: kind, file)


# -- measuring -------------------------------------------------------------------------------------


def _bench_type(kind: str, files: dict[str, Path], arguments: argparse.Namespace) -> list[Speeds]:
    options = RunOptions(context=1024, threads=arguments.threads)
    sessions = {model: open_model(file, options) for model, file in files.items()}
    seconds: dict[str, list[tuple[float, float]]] = {model: [] for model in files}
    for _ in range(arguments.rounds + 1):  # The first round only warms up.
        for model, session in sessions.items():
            seconds[model].append(_round(session, arguments))
    for session in sessions.values():
        session.close()
    rows = []
    for model, file in files.items():
        (prefill, decode), full = zip(*seconds[model][1:], strict=True), seconds["full"][1:]
        pairs = list(zip(full, seconds[model][1:], strict=True))
        rows.append(
            Speeds(
                type=kind,
                model=model,
                file_bytes=file.stat().st_size,
                prefill_tokens_per_second=arguments.prompt / median(prefill),
                decode_tokens_per_second=1 / median(decode),
                prefill_x_full=median(whole[0] / own[0] for whole, own in pairs),
                decode_x_full=median(whole[1] / own[1] for whole, own in pairs),
                first_token_seconds=_first_token_of(file, arguments.threads),
            )
        )
    for file in () if arguments.files else files.values():
        file.unlink()
    return rows


def _make_files(shape: str, kind: str, folder: Path, layers: int) -> dict[str, Path]:
    """The three models of ``kind`` in ``folder``, those that are not there yet written first."""
    files = {model: folder / f"{shape}-{model}-{kind}-{layers}.gguf" for model in MODELS}
    for model, file in files.items():
        if not file.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            config, layout = config_of(shape, model, layers), layout_of(model)
            write_file(config, layout, kind, file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
    return files


def _round(session: Session, arguments: argparse.Namespace) -> tuple[float, float]:
    """Seconds of the prompt, and the median of the tokens after it."""
    prompt, size = arguments.prompt, arguments.prompt + arguments.decode
    tokens = np.random.default_rng(1).integers(session.vocab_size, size=size).tolist()
    clock = CLOCKS[arguments.clock]
    session.reset()
    first = _seconds(session, tokens[:prompt], clock)
    return first, median(_seconds(session, [token], clock) for token in tokens[prompt:])


def _seconds(session: Session, tokens: list[int], clock: Callable[[], float]) -> float:
    start = clock()
    session.evaluate(tokens)
    return clock() - start


def _first_token_of(file: Path, threads: int) -> float:
    command = [sys.executable, __file__, "--first-token", str(file), "--threads", str(threads)]
    runs = [subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(3)]
    return min(float(run.stdout) for run in runs)


def _first_token(file: Path, threads: int) -> float:
    """Seconds from opening ``file`` (in the page cache) to the first token of a short prompt."""
    start = time.perf_counter()
    with open_model(file, RunOptions(context=1024, threads=threads)) as session:
        session.evaluate(list(range(1, 9)))
        return time.perf_counter() - start


# -- ideals and the table --------------------------------------------------------------------------


def active(shape: str, model: str, layers: int, kind: str) -> tuple[float, float]:
    """(bytes read, multiplications) per token: everything but the embedding, top-k experts."""
    config, layout = config_of(shape, model, layers), layout_of(model)
    nbytes = products = 0.0
    found = list(typed_entries(config, layout, lambda entry: kind))
    output = "output" if any(entry.role == "output" for entry, _ in found) else "embed"
    for entry, stored in found:
        routed, sizes = entry.role.startswith("expert_"), entry.tensor.shape
        share = config.num_experts_per_tok / config.num_experts if routed else 1.0
        share *= entry.role != "embed" or output == "embed"  # a tied one is read as the output
        nbytes += share * TYPES[stored].nbytes(sizes)
        products += share * float(np.prod(sizes)) * (entry.role != output)
    return nbytes, products


COLUMNS = (
    ("shape", "{shape}"),
    ("threads", "{threads}"),
    ("type", "{type}"),
    ("prefill: uniform", "{prefill_uniform:.2f}"),
    ("ragged, of the ideal", "{prefill_ragged:.2f}, {prefill_of_ideal:.0%}"),
    ("decode: uniform", "{decode_uniform:.2f}"),
    ("ragged, of the ideal", "{decode_ragged:.2f}, {decode_of_ideal:.0%}"),
)


def beside_full(
    results: list[Speeds], threads: int, shape: str, layers: int
) -> list[dict[str, Any]]:
    """A row a type: speeds over those of the full model in llama.cpp, and of the ragged one as a
    share of what it would gain at best."""
    rows: dict[str, dict[str, Any]] = {}
    for speeds in results:
        title = {"shape": shape, "threads": str(threads), "type": speeds.type}
        row = rows.setdefault(speeds.type, title)
        row[f"prefill_{speeds.model}"] = speeds.prefill_x_full
        row[f"decode_{speeds.model}"] = speeds.decode_x_full
        row[f"first_token_seconds_{speeds.model}"] = speeds.first_token_seconds
        if speeds.model == "ragged":
            decode, prefill = ideals(shape, speeds.model, layers, speeds.type)
            row["prefill_of_ideal"] = speeds.prefill_x_full / prefill
            row["decode_of_ideal"] = speeds.decode_x_full / decode
    return list(rows.values())


def ideals(shape: str, model: str, layers: int, kind: str) -> tuple[float, float]:
    """How much faster than the full model ``model`` is at best: (decode, prefill)."""
    whole, own = (active(shape, m, layers, kind) for m in ("full", model))
    return whole[0] / own[0], whole[1] / own[1]


def _report(results: list[Speeds], shape: str, layers: int) -> None:
    print(
        "type  model     prefill tok/s   x full  ideal   decode tok/s   x full  ideal   first token"
    )
    for row in results:
        decode, prefill = ideals(shape, row.model, layers, row.type)
        print(
            f"{row.type:5} {row.model:8} {row.prefill_tokens_per_second:10.1f}"
            f"{row.prefill_x_full:12.3f} {prefill:6.3f}"
            f"{row.decode_tokens_per_second:13.1f}"
            f"{row.decode_x_full:11.3f} {decode:6.3f} {row.first_token_seconds:10.3f} s"
        )


if __name__ == "__main__":
    main()
