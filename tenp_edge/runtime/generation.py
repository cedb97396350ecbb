"""Generating text: the loop behind ``run`` and ``serve``."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tenp_edge.errors import UserError
from tenp_edge.runtime.sampling import Logprobs, Sampler, SamplingOptions, logprobs
from tenp_edge.runtime.session import Logits, Session
from tenp_edge.runtime.vocabulary import Vocabulary

_ANSWER_TOKENS = 256


@dataclass(frozen=True)
class Piece:
    """One generated token. ``text`` is empty while a character is incomplete; ``finish`` is set on
    the last piece: "stop" (the model ended), "length" (a limit was reached); ``logprobs`` where the
    sampling asks for them; ``word``: the stop string that ended it, if one did."""

    token: int
    text: str
    finish: str | None = None
    logprobs: Logprobs | None = None
    word: str | None = None


class Generation:
    """One answer in the making, of one sequence: from each token's logits to the next `Piece`.

    It knows no model: whoever evaluates the sequence gives the logits after its last token to
    `take`, and evaluates the piece's token unless `finished`. ``limit``: the most tokens of the
    answer, 1 or more.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        prompt: Sequence[int],
        sampling: SamplingOptions | None,
        limit: int,
    ) -> None:
        assert limit >= 1
        self._vocabulary, self.limit = vocabulary, limit
        self._options = sampling or SamplingOptions()
        self._sampler = Sampler(self._options, prompt)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.count = 0
        self.finished = False

    def take(self, logits: Logits) -> Piece:
        """The next piece, for ``logits`` [vocab] after the last token.

        ``finish`` is set on the last one: at an end token (whose text is empty) or at the limit.
        Raises UserError for logits that are not finite.
        """
        assert not self.finished
        token = self._sampler.choose(logits)
        self._sampler.accept(token)
        self.count += 1
        finish = self._finish(token)
        self.finished = finish is not None
        text = self._decoder.decode(self._bytes(token), final=self.finished)
        return Piece(token, text, finish, self._told(logits, token))

    def _finish(self, token: int) -> str | None:
        if self._vocabulary.ends(token):
            return "stop"
        return "length" if self.count == self.limit else None

    def _bytes(self, token: int) -> bytes:
        """What ``token`` adds to the text; an end token nothing."""
        if self._vocabulary.ends(token):
            return b""
        return self._vocabulary.piece(token, special=token in self._options.shown)

    def _told(self, logits: Logits, token: int) -> Logprobs | None:
        count = self._options.logprobs
        return None if count is None else logprobs(logits, token, count)


def generate(
    session: Session,
    prompt: Sequence[int],
    sampling: SamplingOptions | None = None,
    max_tokens: int | None = None,
) -> Iterator[Piece]:
    """Continue ``prompt``; what the cache shares with it is not evaluated again.

    Ends with a piece that has ``finish`` set: at an end token (whose text is empty), after
    ``max_tokens``, or where the context is full. Raises UserError before the first piece when the
    prompt does not fit.
    """
    _check(session, prompt, max_tokens)
    limit = most_tokens(session.context, len(prompt), max_tokens)
    generation = Generation(session.vocabulary, prompt, sampling, limit)
    logits = session.prompt(prompt)
    while not (piece := generation.take(logits)).finish:
        yield piece
        logits = session.decode(piece.token)
    yield piece


def most_tokens(context: int, prompt: int, wanted: int | None = None) -> int:
    """The limit of an answer to ``prompt`` tokens: ``wanted``, or fewer where the context is full
    before. The last token needs no room: it is not evaluated."""
    room = context - prompt + 1
    return room if wanted is None else min(room, wanted)


def _check(session: Session, prompt: Sequence[int], max_tokens: int | None) -> None:
    if not prompt:
        raise UserError("the prompt is empty", "-p with some text")
    if len(prompt) > session.context:
        raise UserError(
            f"the prompt has {len(prompt)} tokens, the context holds {session.context}",
            _longer(session, len(prompt), len(prompt) + (max_tokens or _ANSWER_TOKENS)),
        )
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"--max-tokens is {max_tokens}", "--max-tokens of 1 or more")


def _longer(session: Session, prompt: int, wanted: int) -> str:
    """What helps against a context that is too short: no more than the model knows."""
    known = session.trained_context
    if known is not None and prompt >= known:
        return f"a shorter prompt: the model knows {known} tokens"
    return f"--context {wanted if known is None else min(wanted, known)}"


def run_text(
    session: Session,
    prompt: str,
    sampling: SamplingOptions | None = None,
    max_tokens: int | None = None,
) -> Iterator[str]:
    """The continuation of ``prompt`` in whole characters, as it is generated."""
    for piece in generate(session, session.tokenize(prompt), sampling, max_tokens):
        if piece.text:
            yield piece.text


def prompt_tokens(session: Session, text: str) -> list[int]:
    """Tokens of a rendered chat prompt: the template has written the BOS where one belongs."""
    bos = session.vocabulary.bos
    tokens = session.tokenize(text)
    if bos is not None and tokens[:2] == [bos, bos]:
        return tokens[1:]
    return tokens
