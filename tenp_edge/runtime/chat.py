"""A conversation in the words of the model's own chat template."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.runtime.chat_template import PROCESS, TemplateError
from tenp_edge.runtime.generation import Piece, generate, prompt_tokens
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.session import Session
from tenp_edge.runtime.vocabulary import Vocabulary

Message = Mapping[str, Any]


def render_chat(vocabulary: Vocabulary, messages: Sequence[Message]) -> str:
    """``messages`` ({"role", "content"}) as the model expects them, ready for its answer.

    The template comes from a file that anyone may have made, so it runs in Jinja's sandbox, in a
    process of its own with limits. Raises UserError when the file has none, when it refuses the
    messages, and when it reaches a limit.
    """
    template = vocabulary.chat_template
    if template is None:
        raise UserError("the file has no chat template", "run it without --chat")
    variables = {
        "messages": list(messages),
        "add_generation_prompt": True,
        "bos_token": _text(vocabulary, vocabulary.bos),
        "eos_token": _text(vocabulary, vocabulary.eos),
    }
    try:
        return PROCESS.render(template, variables)
    except TemplateError as error:
        raise UserError(
            f"the chat template cannot render these messages: {error}",
            "user and assistant in turn, beginning with user",
        ) from None


def _text(vocabulary: Vocabulary, token: int | None) -> str:
    return "" if token is None else vocabulary.detokenize([token])


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
        messages = [*self.messages, {"role": "user", "content": text}]
        rendered = render_chat(self._session.vocabulary, messages)
        tokens = prompt_tokens(self._session, rendered)
        answer: list[str] = []
        for piece in generate(self._session, tokens, self._sampling, self._max_tokens):
            answer.append(piece.text)
            yield piece
        self.messages = [*messages, {"role": "assistant", "content": "".join(answer)}]
