"""A conversation in the words of the model's own chat template."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from tenp_edge.errors import UserError
from tenp_edge.runtime.generation import Piece, generate, prompt_tokens
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.session import Session
from tenp_edge.runtime.vocabulary import Vocabulary

Message = Mapping[str, Any]


def render_chat(vocabulary: Vocabulary, messages: Sequence[Message]) -> str:
    """``messages`` ({"role", "content"}) as the model expects them, ready for its answer.

    The template comes from a file that anyone may have made, so it runs in Jinja's sandbox. Raises
    UserError when the file has none, or when it refuses the messages.
    """
    from jinja2 import TemplateError

    template = vocabulary.chat_template
    if template is None:
        raise UserError("the file has no chat template", "run it without --chat")
    try:
        rendered: str = _compiled(template).render(
            messages=list(messages),
            add_generation_prompt=True,
            bos_token=_text(vocabulary, vocabulary.bos),
            eos_token=_text(vocabulary, vocabulary.eos),
        )
        return rendered
    except (TemplateError, TypeError, ValueError) as error:
        raise UserError(
            f"the chat template cannot render these messages: {error}",
            "user and assistant in turn, beginning with user",
        ) from None


@lru_cache(maxsize=4)
def _compiled(template: str) -> Any:
    """Compiled once: a server that compiles it for every request is slow, and its heap grows."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment.from_string(template)


def _text(vocabulary: Vocabulary, token: int | None) -> str:
    return "" if token is None else vocabulary.detokenize([token])


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


class Chat:
    """A conversation that remembers what was said; the cache keeps what is already evaluated."""

    def __init__(
        self,
        session: Session,
        sampling: SamplingOptions | None = None,
        max_tokens: int | None = None,
        system: str | None = None,
    ) -> None:
        self._session, self._sampling, self._max_tokens = session, sampling, max_tokens
        self.messages: list[Message] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})

    def say(self, text: str) -> Iterator[Piece]:
        """The model's answer to ``text``; both are remembered once the answer is complete."""
        asked = [*self.messages, {"role": "user", "content": text}]
        rendered = render_chat(self._session.vocabulary, asked)
        tokens = prompt_tokens(self._session, rendered)
        answer: list[str] = []
        for piece in generate(self._session, tokens, self._sampling, self._max_tokens):
            answer.append(piece.text)
            yield piece
        self.messages = [*asked, {"role": "assistant", "content": "".join(answer)}]
