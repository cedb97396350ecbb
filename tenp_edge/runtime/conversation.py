"""A conversation: what was said, as much of it as the context holds, and the next answer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.runtime.chat_formats.reading import AnswerReader
from tenp_edge.runtime.chat_prompt import ChatPrompt, Message, chat_prompt
from tenp_edge.runtime.chat_template import PROCESS
from tenp_edge.runtime.generation import generate, prompt_tokens
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.session import Session
from tenp_edge.runtime.thinking import Part, Reply, Spoken, remembered

# An answer finds at least a quarter of the context free. Where turns must go, so many go that the
# prompt is half of it: the next turns can then use the cache again.
_ANSWER_SHARE, _KEPT_SHARE = 4, 2


@dataclass(frozen=True)
class Turn:
    """A question and the answer to it, as messages."""

    asked: Message
    answered: Message


@dataclass(frozen=True)
class _Prompt:
    """A conversation up to its next answer, as text and as tokens."""

    rendered: ChatPrompt
    tokens: list[int]


class Conversation:
    """A conversation that remembers what was said; the cache keeps what is already evaluated.

    ``system``: the system message, which is never forgotten; ``variables``: what the template is
    told besides; ``note`` hears of turns that are forgotten because the context is full.
    """

    def __init__(
        self,
        session: Session,
        sampling: SamplingOptions | None = None,
        max_tokens: int | None = None,
        system: str | None = None,
        *,
        variables: Mapping[str, Any] | None = None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._session, self._max_tokens = session, max_tokens
        self._sampling = sampling or SamplingOptions()
        self._variables, self._note = variables or {}, note
        self.system = system
        self.turns: list[Turn] = []

    @property
    def messages(self) -> list[Message]:
        """All that is remembered."""
        return self._messages(self.turns)

    def say(self, text: str) -> Reply:
        """The model's answer to ``text``. The turn is remembered when the answer ends, however that
        is, unless it ends before the first word.

        Raises UserError, and changes nothing, for what the template refuses and for a message that
        does not fit into the context alone.
        """
        return self._answer({"role": "user", "content": text}, self.turns)

    def regenerate(self) -> Reply:
        """Another answer to the last question, in place of the one it got.

        Raises UserError where nothing was asked yet.
        """
        if not self.turns:
            raise UserError("there is no answer yet", "a question first")
        return self._answer(self.turns[-1].asked, self.turns[:-1])

    def _answer(self, asked: Message, turns: Sequence[Turn]) -> Reply:
        try:
            kept, prompt = self._fitted(asked, turns)
        finally:
            PROCESS.close()  # Its memory is not to stand beside the model's while that computes.
        if dropped := len(turns) - len(kept):
            oldest = "the oldest turn is" if dropped == 1 else f"the {dropped} oldest turns are"
            self._note(f"the context is full: {oldest} forgotten")
        return Reply(len(prompt.tokens), self._generated(asked, kept, prompt))

    def _generated(
        self, asked: Message, kept: Sequence[Turn], prompt: _Prompt
    ) -> Generator[Spoken, None, None]:
        rendered = prompt.rendered
        reader = AnswerReader(rendered.form, rendered.thinking, prompt=rendered.text)
        sampling = replace(self._sampling, shown=frozenset(rendered.control.values()))
        parts: list[Part] = []
        try:
            for piece in generate(self._session, prompt.tokens, sampling, self._max_tokens):
                found = reader.feed(piece.text)
                found += reader.finish() if piece.finish is not None else []
                parts += found
                yield Spoken(piece, found)
        finally:
            if parts:
                template = self._session.vocabulary.chat_template or ""
                self.turns = [*kept, Turn(asked, remembered(template, parts))]

    # -- what fits -----------------------------------------------------------------------------

    def _fitted(self, asked: Message, turns: Sequence[Turn]) -> tuple[Sequence[Turn], _Prompt]:
        """The turns that are kept, and the prompt of them and ``asked``."""
        context, prompt = self._session.context, self._prompt(asked, turns)
        room = context // _ANSWER_SHARE
        room = room if self._max_tokens is None else min(room, self._max_tokens)
        if turns and len(prompt.tokens) > context - room:
            most = context // _KEPT_SHARE
            dropped = 1 + bisect_left(
                range(1, len(turns)),
                True,
                key=lambda n: len(self._prompt(asked, turns[n:]).tokens) <= most,
            )
            turns = turns[dropped:]
            prompt = self._prompt(asked, turns)
        if (count := len(prompt.tokens)) > context:
            beside = "its template and the system message" if self.system else "its template"
            raise UserError(
                f"the message has {count} tokens with {beside}, the context holds {context}",
                "a shorter message, or a larger --context",
            )
        return turns, prompt

    def _prompt(self, asked: Message, turns: Sequence[Turn]) -> _Prompt:
        messages = [*self._messages(turns), asked]
        rendered = chat_prompt(self._session.vocabulary, messages, variables=self._variables)
        return _Prompt(rendered, prompt_tokens(self._session, rendered.text))

    def _messages(self, turns: Sequence[Turn]) -> list[Message]:
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *(said for turn in turns for said in (turn.asked, turn.answered))]
