"""Flags of the verbs that run a file: run, serve and bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_RUNTIME, _SAMPLING = "Runtime", "Sampling"


def _flag(*names: str, help: str, panel: str, **limits: Any) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        *names, help=help, rich_help_panel=panel, **limits
    )
    return option


File = Annotated[
    Path,
    typer.Argument(
        help="A GGUF file, an ONNX directory, or the output directory (OUT) of compress.",
        show_default=False,
    ),
]

Context = Annotated[
    int | None,
    _flag(
        "--context",
        help="Tokens that the KV cache holds. Default: 2048, or less where an ONNX model ends.",
        panel=_RUNTIME,
        min=1,
    ),
]
Threads = Annotated[
    int | None, _flag("--threads", help="CPU threads. Default: all cores.", panel=_RUNTIME, min=1)
]
Ubatch = Annotated[
    int, _flag("--ubatch", help="Prompt tokens evaluated at once.", panel=_RUNTIME, min=1)
]
KvType = Annotated[
    str | None,
    _flag(
        "--kv-type",
        help="Type of the KV cache: F16 (default), F32 or Q8_0. ONNX: what the graph has.",
        panel=_RUNTIME,
    ),
]
GpuLayers = Annotated[
    int,
    _flag(
        "--gpu-layers",
        help="Layers on the GPU: merged and padded files, in a GPU build of llama.cpp.",
        panel=_RUNTIME,
        min=0,
    ),
]
NoPrepack = Annotated[
    bool,
    _flag(
        "--no-prepack",
        help="ONNX: use the weights where the file is mapped, without a copy laid out for speed. "
        "Much less memory, slower.",
        panel=_RUNTIME,
    ),
]

MaxTokens = Annotated[
    int | None,
    _flag(
        "-n",
        "--max-tokens",
        help="Tokens to generate at most. Default: until the model ends or the context is full.",
        panel=_SAMPLING,
    ),
]
Temperature = Annotated[
    float, _flag("--temperature", help="0 takes the best token every time.", panel=_SAMPLING)
]
TopK = Annotated[
    int, _flag("--top-k", help="Draw from the K best tokens; 0: all.", panel=_SAMPLING)
]
TopP = Annotated[
    float,
    _flag("--top-p", help="Draw from the best tokens that make up P together.", panel=_SAMPLING),
]
MinP = Annotated[
    float, _flag("--min-p", help="Drop tokens below P times the best one's.", panel=_SAMPLING)
]
RepeatPenalty = Annotated[
    float,
    _flag("--repeat-penalty", help="Above 1 makes recent tokens less likely.", panel=_SAMPLING),
]
Seed = Annotated[
    int | None,
    _flag(
        "--seed",
        help="Same seed, same text. Default: another one every time.",
        panel=_SAMPLING,
        min=0,
    ),
]
