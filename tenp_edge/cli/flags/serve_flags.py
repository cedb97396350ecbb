"""The flags of serve alone: where it listens, who may ask, how much."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Host = Annotated[
    str, typer.Option("--host", help="Address to listen on; 0.0.0.0: the whole network.")
]
Port = Annotated[int, typer.Option("--port", help="Port; 0: any free one.", min=0, max=65535)]
Name = Annotated[
    str | None, typer.Option("--name", help="The model's name; default: what the file says.")
]
Alias = Annotated[
    list[str] | None, typer.Option("--alias", help="Another name of it; can be repeated.")
]
ApiKey = Annotated[
    list[str] | None,
    typer.Option("--api-key", help="A key that requests must bring; TENP_EDGE_API_KEY is one too."),
]
ApiKeyFile = Annotated[Path | None, typer.Option("--api-key-file", help="File with a key a line.")]
Cors = Annotated[
    list[str] | None,
    typer.Option("--cors", help="A site whose pages may ask, https://chat.example; *: all."),
]
Quiet = Annotated[bool, typer.Option("--quiet", help="No line for every request.")]
Json = Annotated[
    bool, typer.Option("--json", help="The address and every request as a line of JSON on stdout.")
]
Queue = Annotated[int, typer.Option("--queue", help="Requests that wait; more get a 503.", min=0)]
Parallel = Annotated[
    int | None,
    typer.Option(
        "--parallel",
        "-np",
        help="Requests answered at a time; they share the context. Default: 4, or as many as "
        "fit the planned memory. ONNX: 1.",
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        "-n", "--max-tokens", help="Most tokens per request. Default: the context.", min=1
    ),
]
MaxBody = Annotated[str, typer.Option("--max-body", help="Largest request, 1MiB.")]
