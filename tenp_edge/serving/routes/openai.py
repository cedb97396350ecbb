"""OpenAI's routes."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI

from tenp_edge.serving.preparing import prepare_chat, prepare_completion
from tenp_edge.serving.refusal import RefusalError
from tenp_edge.serving.routes.generating import add, add_generating
from tenp_edge.serving.schemas.openai import ChatRequest, CompletionRequest
from tenp_edge.serving.service import Service


def add_openai_routes(app: FastAPI, service: Service) -> None:
    add_generating(app, service, "/v1/completions", CompletionRequest, prepare_completion)
    add_generating(app, service, "/v1/chat/completions", ChatRequest, prepare_chat)
    _add_models(app, service)


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
