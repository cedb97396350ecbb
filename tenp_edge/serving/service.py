"""From a request to checked work: the model's name, its tokens, the limits."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tenp_edge.errors import UserError
from tenp_edge.runtime.chat import render_chat
from tenp_edge.runtime.generation import prompt_tokens
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.session import Session
from tenp_edge.serving.refusal import RefusalError
from tenp_edge.serving.schemas import ChatRequest, CompletionRequest, GenerationRequest
from tenp_edge.serving.worker import LineFullError, Work, Worker

_RETRY_SECONDS = 5
# Bodies on their way may take this many times the largest one together.
_BODIES = 32
# Text that has more bytes per token of the context than any language does is not tokenised first
# to be refused then: a MiB of spaces takes seconds.
_BYTES_PER_TOKEN = 32


@dataclass(frozen=True)
class Limits:
    """What one request may ask for. ``max_tokens`` None: as many as the context holds;
    ``waiting``: requests that wait while one is answered; ``body_seconds``: to send a body in;
    ``connections`` at once, each with ``header_seconds`` to send the head of a request in."""

    max_tokens: int | None = None
    body_bytes: int = 2**20
    waiting: int = 16
    body_seconds: float = 30.0
    connections: int = 256
    header_seconds: float = 10.0


class Service:
    """One model that is served. Close it before its session."""

    def __init__(
        self,
        session: Session,
        name: str,
        sampling: SamplingOptions | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.name, self.runtime, self.context = name, session.runtime, session.context
        self.limits = limits or Limits()
        self.max_tokens = min(self.limits.max_tokens or self.context, self.context)
        self._session, self._sampling = session, sampling or SamplingOptions()
        self.worker = Worker(session, self.limits.waiting)
        self._held_bytes = 0
        self.preparing = ThreadPoolExecutor(1, thread_name_prefix="tenp-edge-prompts")

    def close(self) -> None:
        self.preparing.shutdown(cancel_futures=True)
        self.worker.close()

    def work(self, request: GenerationRequest) -> Work:
        """``request`` as checked work. Raises RefusalError.

        Tokenising touches the vocabulary alone, which the worker only reads.
        """
        if request.model is not None:
            self.check_name(request.model)
        tokens = request.wanted_tokens(self.max_tokens)
        if tokens > self.max_tokens:
            raise RefusalError(
                400,
                f"max_tokens is {tokens}, this server generates at most {self.max_tokens}",
                "invalid_value",
                "max_tokens",
            )
        prompt = self._prompt(request)
        return Work(tuple(prompt), request.sampling(self._sampling), tokens, request.stops())

    def check_name(self, name: str) -> None:
        """Refuse any model but the one that is served."""
        if name != self.name:
            raise RefusalError(
                404,
                f"the model '{name}' is not served here; '{self.name}' is",
                "model_not_found",
                "model",
            )

    def reserve(self) -> None:
        """Take a place in the line for a request that is yet to be tokenised, or refuse it because
        the line is full. The place is `Worker.submit`'s or `Worker.release`'s to give back."""
        try:
            self.worker.reserve()
        except LineFullError:
            raise _busy(f"{self.limits.waiting} requests are waiting already") from None

    def hold(self, count: int) -> None:
        """Count ``count`` more bytes of bodies on their way (fewer, where negative), or refuse."""
        if count > 0 and self._held_bytes + count > _BODIES * self.limits.body_bytes:
            raise _busy("too many long requests are on their way")
        self._held_bytes += count

    def _prompt(self, request: GenerationRequest) -> Sequence[int]:
        field = "messages" if isinstance(request, ChatRequest) else "prompt"
        try:
            tokens = self._tokens(request)
        except UserError as error:
            raise RefusalError(400, error.message, "invalid_value", field) from None
        if not tokens:
            raise RefusalError(400, "the prompt is empty", "invalid_value", field)
        if len(tokens) > self.context:
            raise RefusalError(
                400,
                f"the prompt has {len(tokens)} tokens, the context holds {self.context}",
                "context_length_exceeded",
                field,
            )
        low, high, size = min(tokens), max(tokens), self._session.vocab_size
        if low < 0 or high >= size:
            wrong = low if low < 0 else high
            raise RefusalError(
                400, f"token {wrong} is not in the vocabulary of {size}", "invalid_value", field
            )
        return tokens

    def _tokens(self, request: GenerationRequest) -> list[int]:
        if isinstance(request, ChatRequest):
            messages = [message.plain() for message in request.messages]
            self._check_length(sum(_size(message["content"]) for message in messages), "messages")
            rendered = render_chat(self._session.vocabulary, messages)
            self._check_length(_size(rendered), "messages")
            return prompt_tokens(self._session, rendered)
        assert isinstance(request, CompletionRequest)
        if isinstance(request.prompt, str):
            self._check_length(_size(request.prompt), "prompt")
            return self._session.tokenize(request.prompt)
        return [int(token) for token in request.prompt]  # type: ignore[arg-type]

    def _check_length(self, nbytes: int, field: str) -> None:
        """Refuse what cannot fit before it is tokenised."""
        max_bytes = _BYTES_PER_TOKEN * self.context
        if nbytes > max_bytes:
            raise RefusalError(
                400,
                f"the prompt has {nbytes} bytes, "
                f"a context of {self.context} tokens takes {max_bytes}",
                "context_length_exceeded",
                field,
            )


def _size(text: str) -> int:
    return len(text.encode(errors="replace"))


def _busy(why: str) -> RefusalError:
    return RefusalError(
        503,
        f"{why}; try again later",
        "queue_full",
        headers={"Retry-After": str(_RETRY_SECONDS)},
    )
