"""OpenAI's Responses API: a chat in other words. Nothing of it is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response

from tenp_edge.serving.answers.answer import Answer
from tenp_edge.serving.answers.choice import Choice
from tenp_edge.serving.answers.responses import ResponseAnswer
from tenp_edge.serving.bodies import body_of
from tenp_edge.serving.preparing import Prepared, prepare_chat, rendered
from tenp_edge.serving.refusal import spelled
from tenp_edge.serving.routes.generating import add, generated, in_thread
from tenp_edge.serving.schemas.responses import FIELDS, ResponsesRequest
from tenp_edge.serving.schemas.wording import parse, translated
from tenp_edge.serving.service import Service


def add_responses_route(app: FastAPI, service: Service) -> None:
    async def respond(request: Request) -> Response:
        payload = parse(ResponsesRequest, await body_of(request, service))
        return await generated(request, service, lambda: _prepare(service, payload), payload.stream)

    async def count(request: Request) -> Any:
        payload = parse(ResponsesRequest, await body_of(request, service))
        tokens = await in_thread(request, service, lambda: _count(service, payload))
        return {"object": "response.input_tokens", "input_tokens": tokens}

    add(app, "POST", "/v1/responses", respond)
    add(app, "POST", "/v1/responses/input_tokens", count)


def _prepare(service: Service, payload: ResponsesRequest) -> Prepared:
    def spelling(choices: Sequence[Choice], tokens: int) -> Answer:
        name = service.named(payload.model)
        return ResponseAnswer(choices, tokens, name, service.vocabulary, payload.echoed())

    with spelled(FIELDS):
        return prepare_chat(service, translated(payload.openai), spelling)


def _count(service: Service, payload: ResponsesRequest) -> int:
    with spelled(FIELDS):
        prompt = rendered(service, translated(payload.openai))
        return len(service.prompts.chat_tokens(prompt.text))
