"""Generating text: the loop behind ``run`` and ``serve``."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tenp_edge.errors import UserError
from tenp_edge.runtime.sampling import Sampler, SamplingOptions
from tenp_edge.runtime.session import Session

_ANSWER_TOKENS = 256


@dataclass(frozen=True)
class Piece:
    """One generated token. ``text`` is empty while a character is incomplete; ``finish`` is set on
    the last piece: "stop" (the model ended), "length" (a limit was reached)."""

    token: int
    text: str
    finish: str | None = None


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
    room = session.context - len(prompt) + 1
    limit = room if max_tokens is None else min(room, max_tokens)
    sampler = Sampler(sampling or SamplingOptions(), prompt)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    logits = session.prompt(prompt)
    for number in range(1, limit + 1):
        token = sampler.choose(logits)
        if session.vocabulary.ends(token):
            yield Piece(token, decoder.decode(b"", final=True), "stop")
            return
        last = number == limit
        text = decoder.decode(session.vocabulary.piece(token), final=last)
        yield Piece(token, text, "length" if last else None)
        if not last:
            sampler.accept(token)
            logits = session.decode(token)


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
