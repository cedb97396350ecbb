"""OpenAI's routes."""

from __future__ import annotations

import time
from typing import Any, NoReturn

from fastapi import FastAPI

from tenp_edge.serving.preparing import prepare_chat, prepare_completion
from tenp_edge.serving.refusal import RefusalError
from tenp_edge.serving.routes.generating import add, add_generating
from tenp_edge.serving.schemas.openai import ChatRequest, CompletionRequest
from tenp_edge.serving.service import Service

# Routes of others that clients try, and why they are not here.
_ABSENT = {
    "/v1/embeddings": "embeddings need a model that is trained for them; this one generates text",
    "/v1/rerank": "ranking needs a model that is trained for it; this one generates text",
    "/v1/images/generations": "this model generates text alone",
    "/v1/audio/transcriptions": "this model reads text alone",
    "/v1/audio/speech": "this model writes text alone",
    "/v1/moderations": "moderation needs a model that is trained for it; this one generates text",
    "/v1/embedding": "embeddings need a model that is trained for them; this one generates text",
    "/v1/infill": "filling gaps needs a model that is trained for it; use /completion",
}
_OLLAMA = "this is Ollama's API, which is not served; its clients also speak OpenAI's, at /v1"


def add_openai_routes(app: FastAPI, service: Service) -> None:
    add_generating(app, service, "/v1/completions", CompletionRequest, prepare_completion)
    add_generating(app, service, "/v1/chat/completions", ChatRequest, prepare_chat)
    _add_models(app, service)
    for path, why in _ABSENT.items():
        add(app, "POST", path, _refusing(why))
    app.add_api_route(
        "/api/{name:path}", _refusing(_OLLAMA), methods=["GET", "POST"], response_model=None
    )


def _add_models(app: FastAPI, service: Service) -> None:
    created = int(time.time())

    def described(name: str) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "tenp-edge",
            "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
            "meta": {
                "runtime": service.runtime,
                "n_ctx": service.context,
                "n_vocab": service.session.vocab_size,
                "n_ctx_train": service.session.trained_context,
            },
        }

    names = (service.name, *service.aliases)

    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described(name) for name in names]}

    async def one_model(name: str) -> dict[str, Any]:
        if not name:  # /v1/models/
            return await models()
        if name not in names:
            raise RefusalError(
                404,
                f"the model '{name}' is not listed here; '{service.name}' is",
                "model_not_found",
                "model",
            )
        return described(name)

    add(app, "GET", "/v1/models", models)
    add(app, "GET", "/v1/models/{name:path}", one_model)


def _refusing(why: str) -> Any:
    async def refuse() -> NoReturn:
        raise RefusalError(400, why, "not_supported")

    return refuse
