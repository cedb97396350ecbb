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
from tenp_edge.serving.metrics import Load
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
from tenp_edge.serving.worker import SlotStatus
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
        [Choice(silent=request.wanted_tokens() == 0) for _ in works],
        service.named(request.model),
        service.vocabulary,
        works,
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
        raise RefusalError.of(error, 400, "invalid_value", "content") from None
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

    async def slots(request: Request) -> list[dict[str, Any]]:
        found = _slots(service)
        busy = all(slot["is_processing"] for slot in found)
        if busy and request.query_params.get("fail_on_no_slot"):
            raise RefusalError(503, "no slot is free", "no_slot")
        return found

    async def metrics() -> Response:
        load = Load(*service.worker.counts, service.context)
        text = service.metrics.text(service.worker.status(), load)
        return PlainTextResponse(text, media_type=_PROMETHEUS)

    async def adapters() -> list[Any]:
        return []  # None can be loaded, which is no error to ask for.

    for path, route in (
        ("/v1/health", health),
        ("/v1/lora-adapters", adapters),
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
            "id": 0,
            "id_task": -1,
            "n_ctx": service.context,
            "speculative": False,
            "is_processing": False,
            "params": settings(service.sampling, service.max_tokens),
        },
        "total_slots": len(_slots(service)),
        "is_sleeping": False,
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
    """What every sequence of the cache holds, and its request."""
    return [_slot(service, slot) for slot in service.worker.status().slots]


def _slot(service: Service, slot: SlotStatus) -> dict[str, Any]:
    found = {
        "id": slot.number,
        "n_ctx": service.context,
        "speculative": False,
        "is_processing": slot.work is not None,
        "n_tokens": slot.tokens,
    }
    if slot.work is None:
        return found
    work = slot.work
    next_token = {
        "has_next_token": slot.left_tokens > 0,
        "n_remain": slot.left_tokens,
        "n_decoded": slot.generated_tokens,
    }
    return found | {
        "n_prompt_tokens": len(work.prompt),
        "params": settings(work.sampling, work.max_tokens, work.stops),
        "next_token": next_token,
    }
