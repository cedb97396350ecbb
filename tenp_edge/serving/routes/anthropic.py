"""Anthropic's messages API: /v1/messages, and its count of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from tenp_edge.serving.answers.answer import Answer
from tenp_edge.serving.answers.anthropic import MessageAnswer, anthropic_error
from tenp_edge.serving.answers.choice import Choice
from tenp_edge.serving.bodies import body_of
from tenp_edge.serving.preparing import Prepared, prepare_chat, rendered
from tenp_edge.serving.refusal import spelled
from tenp_edge.serving.routes.generating import add, both, generated, in_thread
from tenp_edge.serving.schemas.anthropic import FIELDS, CountRequest, MessagesRequest
from tenp_edge.serving.schemas.wording import parse, translated
from tenp_edge.serving.service import Service

__all__ = ["add_anthropic_routes", "anthropic_error", "is_anthropic"]
_PATH = "/v1/messages"


def is_anthropic(path: str) -> bool:
    """Whether errors at ``path`` are spelled in Anthropic's way."""
    return any(path == spelled or path.startswith(f"{spelled}/") for spelled in both(_PATH))


def add_anthropic_routes(app: FastAPI, service: Service) -> None:
    async def messages(request: Request) -> Response:
        payload = parse(MessagesRequest, await body_of(request, service))
        return await generated(request, service, lambda: _prepare(service, payload), payload.stream)

    async def count(request: Request) -> dict[str, Any]:
        payload = parse(CountRequest, await body_of(request, service))
        tokens = await in_thread(request, service, lambda: _count(service, payload))
        return {"input_tokens": tokens}

    add(app, "POST", _PATH, messages)
    add(app, "POST", f"{_PATH}/count_tokens", count)


def _prepare(service: Service, payload: MessagesRequest) -> Prepared:
    def spelling(choices: Sequence[Choice], tokens: int) -> Answer:
        return MessageAnswer(choices, tokens, service.named(payload.model))

    with spelled(FIELDS):
        return prepare_chat(service, translated(payload.openai), spelling)


def _count(service: Service, payload: CountRequest) -> int:
    with spelled(FIELDS):
        prompt = rendered(service, translated(payload.openai))
        return len(service.prompts.chat_tokens(prompt.text))
