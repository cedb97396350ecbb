"""The flags of the verbs that run a file, as typer takes them: made of the table `lean_flags`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tenp_edge.cli.flags import lean_flags as table


def _option(flag: table.Flag) -> typer.models.OptionInfo:
    limits: dict[str, Any] = (
        {"min": flag.least, "max": flag.most} if flag.kind in (int, float) else {}
    )
    option: typer.models.OptionInfo = typer.Option(
        *flag.names, help=flag.help, rich_help_panel=flag.panel, **limits
    )
    return option


File = Annotated[
    Path,
    typer.Argument(
        help="A GGUF file, an ONNX directory, or the output directory (OUT) of compress.",
        show_default=False,
    ),
]
Prompt = Annotated[str | None, _option(table.PROMPT)]
Chat = Annotated[bool, _option(table.CHAT)]
Raw = Annotated[bool, _option(table.RAW)]
Json = Annotated[bool, _option(table.JSON)]
System = Annotated[str | None, _option(table.SYSTEM)]
NoThinking = Annotated[bool, _option(table.NO_THINKING)]
TemplateVariables = Annotated[str | None, _option(table.TEMPLATE_VARIABLES)]
NoHistory = Annotated[bool, _option(table.NO_HISTORY)]

Context = Annotated[int | None, _option(table.CONTEXT)]
Threads = Annotated[int | None, _option(table.THREADS)]
Ubatch = Annotated[int | None, _option(table.UBATCH)]
KvType = Annotated[str | None, _option(table.KV_TYPE)]
GpuLayers = Annotated[int, _option(table.GPU_LAYERS)]
NoPrepack = Annotated[bool, _option(table.NO_PREPACK)]

MaxTokens = Annotated[int | None, _option(table.MAX_TOKENS)]
Temperature = Annotated[float, _option(table.TEMPERATURE)]
TopK = Annotated[int, _option(table.TOP_K)]
TopP = Annotated[float, _option(table.TOP_P)]
MinP = Annotated[float, _option(table.MIN_P)]
RepeatPenalty = Annotated[float, _option(table.REPEAT_PENALTY)]
Seed = Annotated[int | None, _option(table.SEED)]
