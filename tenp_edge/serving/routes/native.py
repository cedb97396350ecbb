"""llama-server's own routes: /completion, tokens, templates, and what the server is doing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response

from tenp_edge.errors import UserError
from tenp_edge.serving.answers.choice import Choice
from tenp_edge.serving.answers.native import NativeAnswer, settings
from tenp_edge.serving.bodies import body_of
from tenp_edge.serving.preparing import Prepared, rendered
from tenp_edge.serving.refusal import RefusalError
from tenp_edge.serving.routes.generating import add, add_generating, in_thread
from tenp_edge.serving.schemas.native import (
    DetokenizeRequest,
    Mixed,
    NativeRequest,
    TokenizeRequest,
)
from tenp_edge.serving.schemas.openai import ChatRequest
from tenp_edge.serving.schemas.wording import parse
from tenp_edge.serving.service import Service
from tenp_edge.version import __version__

_PROMETHEUS = "text/plain; version=0.0.4"


def add_native_routes(app: FastAPI, service: Service) -> None:
    add_generating(app, service, "/v1/completion", NativeRequest, _prepare)
    _add_tokens(app, service)
    _add_facts(app, service)


def _prepare(service: Service, request: NativeRequest) -> Prepared:
    tokens = [service.prompts.tokens(_tokens(service, prompt)) for prompt in request.prompts()]
    sampling = service.sampling_of(request, request.n_probs or None, request.grammar_source())
    works = [service.work(request, prompt, sampling) for prompt in tokens]
    answer = NativeAnswer(
        [Choice() for _ in works],
        [len(prompt) for prompt in tokens],
        service.named(request.model),
        service.vocabulary,
        sampling,
        bool(request.return_tokens),
    )
    return Prepared(works, answer)


def _tokens(service: Service, prompt: str | Mixed) -> str | Sequence[int]:
    """Texts among token numbers as their tokens; the first one begins as any text does."""
    if isinstance(prompt, str):
        return prompt
    found: list[int] = []
    for number, part in enumerate(prompt):
        if isinstance(part, int):
            found.append(part)
        else:
            found += service.prompts.part_tokens(part, begins=number == 0)
    return found


def _add_tokens(app: FastAPI, service: Service) -> None:
    async def tokenize(request: Request) -> Any:
        payload = parse(TokenizeRequest, await body_of(request, service))
        return await in_thread(request, service, lambda: _tokenized(service, payload))

    async def detokenize(request: Request) -> Any:
        payload = parse(DetokenizeRequest, await body_of(request, service))
        for token in payload.tokens:
            service.prompts.check_token(token, "tokens")
        return {"content": service.vocabulary.detokenize(payload.tokens)}

    async def apply_template(request: Request) -> Any:
        payload = parse(ChatRequest, await body_of(request, service))
        prompt = await in_thread(request, service, lambda: rendered(service, payload))
        return {"prompt": "" if prompt is None else prompt.text}

    for path, route in (
        ("/v1/tokenize", tokenize),
        ("/v1/detokenize", detokenize),
        ("/v1/apply-template", apply_template),
    ):
        add(app, "POST", path, route)


def _tokenized(service: Service, request: TokenizeRequest) -> dict[str, Any]:
    """Text is cut at the context's bytes only by `Limits.body_bytes`: nothing is evaluated."""
    try:
        tokens = service.session.tokenize(
            request.content, add_special=request.add_special, parse_special=request.parse_special
        )
    except UserError as error:
        raise RefusalError(400, error.message, "invalid_value", "content") from None
    if not request.with_pieces:
        return {"tokens": tokens}
    return {"tokens": [{"id": token, "piece": _piece(service, token)} for token in tokens]}


def _piece(service: Service, token: int) -> str | list[int]:
    """The text of a token, or its bytes where they are no whole characters."""
    raw = service.vocabulary.piece(token, special=True)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


def _add_facts(app: FastAPI, service: Service) -> None:
    async def health() -> dict[str, Any]:
        running, waiting = service.worker.counts
        return {"status": "ok", "running": running, "waiting": waiting}

    async def props() -> dict[str, Any]:
        return _props(service)

    async def slots() -> list[dict[str, Any]]:
        return _slots(service)

    async def metrics() -> Response:
        running, waiting = service.worker.counts
        held = sum(slot["n_tokens"] for slot in _slots(service))
        text = service.metrics.text(running, waiting, held, service.context)
        return PlainTextResponse(text, media_type=_PROMETHEUS)

    for path, route in (
        ("/v1/health", health),
        ("/v1/props", props),
        ("/v1/slots", slots),
        ("/v1/metrics", metrics),
    ):
        add(app, "GET", path, route)


def _props(service: Service) -> dict[str, Any]:
    vocabulary = service.vocabulary
    special = {"bos_token": vocabulary.bos, "eos_token": vocabulary.eos}
    return {
        "default_generation_settings": {
            "n_ctx": service.context,
            "params": settings(service.sampling) | {"n_predict": service.max_tokens},
        },
        "total_slots": len(_slots(service)),
        "model_alias": service.name,
        "model_path": service.name,  # not where it lies on this machine
        "modalities": {"vision": False, "audio": False},
        "chat_template": vocabulary.chat_template or "",
        **{
            name: "" if token is None else vocabulary.detokenize([token])
            for name, token in special.items()
        },
        "build_info": f"tenp-edge {__version__} ({service.runtime})",
    }


def _slots(service: Service) -> list[dict[str, Any]]:
    """What every sequence of the cache holds."""
    return [
        {
            "id": slot.number,
            "n_ctx": service.context,
            "n_tokens": slot.tokens,
            "is_processing": slot.running,
            "n_prompt_tokens": slot.prompt_tokens,
            "n_decoded": slot.generated_tokens,
        }
        for slot in service.worker.status().slots
    ]
