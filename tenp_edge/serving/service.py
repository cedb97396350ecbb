"""The model that is served: its names, its limits, and from a request to checked work."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from tenp_edge.errors import UserError
from tenp_edge.runtime.grammars import CompiledGrammar, GrammarCompiler, GrammarSource
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.session import Session
from tenp_edge.serving.metrics import Metrics
from tenp_edge.serving.prompts import Prompts
from tenp_edge.serving.refusal import RefusalError
from tenp_edge.serving.schemas.generation import GenerationRequest
from tenp_edge.serving.worker import LineFullError, Work, Worker

_RETRY_SECONDS = 5
# Bodies on their way may take this many times the largest one together.
_BODIES = 32


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
    """One model that is served, under ``name`` and ``aliases``. Close it before its session."""

    def __init__(
        self,
        session: Session,
        name: str,
        sampling: SamplingOptions | None = None,
        limits: Limits | None = None,
        aliases: Sequence[str] = (),
    ) -> None:
        self.name, self.aliases = name, tuple(aliases)
        self.runtime, self.context = session.runtime, session.context
        self.limits = limits or Limits()
        self.max_tokens = min(self.limits.max_tokens or self.context, self.context)
        self.session, self.sampling = session, sampling or SamplingOptions()
        self.vocabulary, self.prompts = session.vocabulary, Prompts(session)
        self.metrics = Metrics()
        self._grammars = GrammarCompiler(session.vocabulary, session.vocab_size)
        self.worker = Worker(session, self.limits.waiting)
        self._held_bytes = 0
        self.preparing = ThreadPoolExecutor(1, thread_name_prefix="tenp-edge-prompts")

    def close(self) -> None:
        self.preparing.shutdown(cancel_futures=True)
        self.worker.close()

    def named(self, wanted: str | None) -> str:
        """The name that an answer goes by: an alias where the request has one. Any other name is
        served too, as clients come with names of their own."""
        return wanted if wanted in self.aliases else self.name

    def work(
        self,
        request: GenerationRequest,
        prompt: tuple[int, ...],
        sampling: SamplingOptions,
        index: int = 0,
        told: int | None = None,
    ) -> Work:
        """Choice ``index`` of an answer to ``prompt``. Choices of one seed are drawn from seeds
        that follow it. ``told`` as in `Work`."""
        if index and sampling.seed is not None:
            sampling = replace(sampling, seed=(sampling.seed + index) % 2**64)
        wanted = request.wanted_tokens()
        limit = self.max_tokens if wanted is None else min(wanted, self.max_tokens)
        return Work(prompt, sampling, max(1, limit), request.stops(), told)

    def sampling_of(
        self,
        request: GenerationRequest,
        told: int | None,
        grammar: GrammarSource | None,
        shown: frozenset[int] = frozenset(),
        field: str = "grammar",
    ) -> SamplingOptions:
        """How the answers to ``request`` are drawn. ``told``: how many log probabilities; ``shown``
        as in `SamplingOptions`; ``field`` is where the grammar comes from. Raises RefusalError."""
        options = request.sampling(self.sampling, self.context)
        return replace(
            options,
            logit_bias=self._biases(request),
            grammar=None if grammar is None else self._compiled(grammar, field),
            logprobs=told,
            shown=shown,
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

    def _biases(self, request: GenerationRequest) -> tuple[tuple[int, float], ...]:
        """Token numbers and what is added to their logits; texts mean each of their tokens."""
        biases = []
        for name, bias in request.biases():
            tokens = [int(name)] if _is_number(name) else self._tokens_of(name)
            for token in tokens:
                self.prompts.check_token(token, "logit_bias")
                biases.append((token, bias))
        if request.ignore_eos:
            biases += [(token, float("-inf")) for token in self.vocabulary.end_tokens]
        return tuple(biases)

    def _tokens_of(self, text: str) -> list[int]:
        return self.vocabulary.tokenize(text, add_special=False, parse_special=False)

    def _compiled(self, source: GrammarSource, field: str) -> CompiledGrammar:
        try:
            return self._grammars.compiled(source)
        except UserError as error:
            raise RefusalError.of(error, 400, "invalid_grammar", field) from None


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isascii() and text.removeprefix("-").isdigit()


def _busy(why: str) -> RefusalError:
    return RefusalError(
        503,
        f"{why}; try again later",
        "queue_full",
        headers={"Retry-After": str(_RETRY_SECONDS)},
    )
