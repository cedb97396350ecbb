"""Routes of other servers that clients try, and why they are not here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

from fastapi import FastAPI

from tenp_edge.serving.refusal import RefusalError
from tenp_edge.serving.routes.generating import both

_READS = "this model reads text alone"
_WRITES = "this model writes text alone"
_EMBEDS = "embeddings need a model that is trained for them; this one generates text"
_RANKS = "ranking needs a model that is trained for it; this one generates text"
_FORGETS = "this server keeps nothing of anybody; send the whole conversation with each request"
_ONE_MODEL = "one model is served from start to end; start another server for another"
# What lies below each path is refused, too.
_ABSENT = {
    "/v1/embeddings": _EMBEDS,
    "/v1/embedding": _EMBEDS,
    "/v1/rerank": _RANKS,
    "/v1/reranking": _RANKS,
    "/v1/moderations": "moderation needs a model that is trained for it; this one generates text",
    "/v1/infill": "filling gaps needs a model that is trained for it; use /completion",
    "/v1/images": _WRITES,
    "/v1/videos": _WRITES,
    "/v1/audio/speech": _WRITES,
    "/v1/audio": _READS,
    "/v1/realtime": _READS,
    **dict.fromkeys(
        (
            "/v1/responses/{answer}",
            "/v1/chat/completions/{answer}",
            "/v1/messages/batches",
            "/v1/assistants",
            "/v1/batches",
            "/v1/conversations",
            "/v1/files",
            "/v1/fine_tuning",
            "/v1/threads",
            "/v1/uploads",
            "/v1/vector_stores",
        ),
        _FORGETS,
    ),
    "/api": "this is Ollama's API, which is not served; its clients also speak OpenAI's, at /v1",
}
# Of llama-server's: what POST changes, where GET may tell.
_UNCHANGED = {
    "/v1/slots/{slot}": "what a slot holds is neither saved nor restored nor erased; a prompt "
    "takes the slot that holds most of it by itself",
    "/v1/props": "the command's flags are the settings; a request brings its own",
    "/v1/models/load": _ONE_MODEL,
    "/v1/models/unload": _ONE_MODEL,
    "/v1/lora-adapters": "no adapter is loaded: merge it into the checkpoint, then compress",
}
_EVERY = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def add_absent_routes(app: FastAPI) -> None:
    """Refuse them with the reason; to be added after the routes that there are."""
    for path, why in _ABSENT.items():
        for spelled in (path, f"{path}/{{below:path}}"):
            _refuse(app, spelled, why, _EVERY)
    for path, why in _UNCHANGED.items():
        _refuse(app, path, why, ["POST"])


def _refuse(app: FastAPI, path: str, why: str, methods: list[str]) -> None:
    async def refuse() -> NoReturn:
        raise RefusalError(400, why, "not_supported")

    for spelled in _spellings(path):
        app.add_api_route(spelled, refuse, methods=methods, response_model=None)


def _spellings(path: str) -> Iterator[str]:
    yield from both(path) if path.startswith("/v1") else (path,)


def no_such_route(method: str, path: str) -> str:
    """What a 404 says."""
    return (
        f"{method} {path} is no route of this server; it has /v1/chat/completions, "
        "/v1/completions, /v1/responses, /v1/messages, /completion, /v1/models and the others of "
        "docs/serving.md"
    )
