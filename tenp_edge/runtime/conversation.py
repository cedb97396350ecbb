"""A conversation: what was said, as much of it as the context holds, and the next answer."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.runtime.chat import Message, render_chat
from tenp_edge.runtime.chat_template import PROCESS
from tenp_edge.runtime.generation import Piece, generate, prompt_tokens
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.session import Session
from tenp_edge.runtime.thinking import Part, Reply, Splitter, Spoken, markers_of, remembered

# An answer finds at least a quarter of the context free. Where turns must go, so many go that the
# prompt is half of it: the next turns can then use the cache again.
_ANSWER_SHARE, _KEPT_SHARE = 4, 2


@dataclass(frozen=True)
class Turn:
    """A question and the answer to it, as messages."""

    asked: Message
    answered: Message


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
        self._session, self._sampling, self._max_tokens = session, sampling, max_tokens
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
            kept, tokens = self._fitted(asked, turns)
        finally:
            PROCESS.close()  # Its memory is not to stand beside the model's while that computes.
        if dropped := len(turns) - len(kept):
            oldest = "the oldest turn is" if dropped == 1 else f"the {dropped} oldest turns are"
            self._note(f"the context is full: {oldest} forgotten")
        return Reply(len(tokens), self._generated(asked, kept, tokens))

    def _generated(
        self, asked: Message, kept: Sequence[Turn], tokens: Sequence[int]
    ) -> Generator[Spoken, None, None]:
        vocabulary = self._session.vocabulary
        template = vocabulary.chat_template or ""
        splitter = self._splitter(template, tokens)
        parts: list[Part] = []
        try:
            for piece in generate(self._session, tokens, self._sampling, self._max_tokens):
                text = piece.text or splitter.spelled(_control(self._session, piece))
                found = splitter.feed(text, last=piece.finish is not None)
                parts += found
                yield Spoken(piece, found)
        finally:
            if parts:
                thought, said = (
                    "".join(part.text for part in parts if part.thinking is thinking)
                    for thinking in (True, False)
                )
                self.turns = [*kept, Turn(asked, remembered(template, thought, said))]

    def _splitter(self, template: str, tokens: Sequence[int]) -> Splitter:
        """Some templates open the thinking themselves."""
        markers = markers_of(template)
        end = self._session.detokenize(tokens[-16:]).rstrip()
        return Splitter(markers, end.endswith(markers.opened.rstrip()))

    # -- what fits -----------------------------------------------------------------------------

    def _fitted(self, asked: Message, turns: Sequence[Turn]) -> tuple[Sequence[Turn], list[int]]:
        """The turns that are kept, and the tokens of them and ``asked``."""
        context, tokens = self._session.context, self._tokens(asked, turns)
        room = context // _ANSWER_SHARE
        room = room if self._max_tokens is None else min(room, self._max_tokens)
        if turns and len(tokens) > context - room:
            dropped = 1 + bisect_left(
                range(1, len(turns)),
                True,
                key=lambda n: len(self._tokens(asked, turns[n:])) <= context // _KEPT_SHARE,
            )
            turns = turns[dropped:]
            tokens = self._tokens(asked, turns)
        if len(tokens) > context:
            beside = "its template and the system message" if self.system else "its template"
            raise UserError(
                f"the message has {len(tokens)} tokens with {beside}, the context holds {context}",
                "a shorter message, or a larger --context",
            )
        return turns, tokens

    def _tokens(self, asked: Message, turns: Sequence[Turn]) -> list[int]:
        messages = [*self._messages(turns), asked]
        rendered = render_chat(self._session.vocabulary, messages, self._variables)
        return prompt_tokens(self._session, rendered)

    def _messages(self, turns: Sequence[Turn]) -> list[Message]:
        first = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*first, *(said for turn in turns for said in (turn.asked, turn.answered))]


def _control(session: Session, piece: Piece) -> str:
    """The text of a control token; nothing for a token of a character that is not complete."""
    vocabulary = session.vocabulary
    if piece.finish == "stop" or vocabulary.piece(piece.token):
        return ""
    return vocabulary.piece(piece.token, special=True).decode(errors="replace")
