"""Text on the terminal as it is generated: one continuation, or a conversation."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from tenp_edge.errors import UserError
from tenp_edge.runtime.generation import Piece, generate
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.session import Session

Note = Callable[[str], None]


def continue_text(
    session: Session,
    prompt: str,
    sampling: SamplingOptions,
    max_tokens: int | None,
    out: TextIO,
    note: Note,
) -> None:
    """Write what follows ``prompt`` to ``out``; Ctrl-C ends it."""
    pieces = generate(session, session.tokenize(prompt), sampling, max_tokens)
    write_pieces(pieces, out, note)


def converse(
    session: Session,
    first: str | None,
    system: str | None,
    sampling: SamplingOptions,
    max_tokens: int | None,
    out: TextIO,
    note: Note,
) -> None:
    """Answer ``first``, then every line of stdin; Ctrl-C ends an answer, Ctrl-D the conversation.

    With ``first`` and no terminal there is no second question.
    """
    from tenp_edge.runtime.chat import Chat  # and with it, the process of the template

    chat = Chat(session, sampling, max_tokens, system)
    if first is not None:
        write_pieces(chat.say(first), out, note)
        if not sys.stdin.isatty():
            return
    while (question := _ask()) is not None:
        if question.strip():
            write_pieces(chat.say(question), out, note)


def _ask() -> str | None:
    """The next line, None at the end."""
    if sys.stdin.isatty():
        sys.stderr.write("> ")
        sys.stderr.flush()
    line = sys.stdin.readline()
    return line.rstrip("\n") if line else None


def write_pieces(pieces: Iterator[Piece], out: TextIO, note: Note) -> None:
    """Write ``pieces`` as they come, then a line about their speed."""
    count, begun, first = 0, time.perf_counter(), 0.0
    finish: str | None = None
    try:
        for piece in pieces:
            out.write(piece.text)
            out.flush()
            count += 1
            first = first or time.perf_counter()
            finish = piece.finish
    except KeyboardInterrupt:
        finish = "interrupted"
    out.write("\n")
    out.flush()
    seconds = time.perf_counter() - first
    speed = f", then {(count - 1) / seconds:.1f} tokens/s" if count > 1 else ""
    waited = f", the first after {first - begun:.2f} s" if first else ""
    note(f"{count} tokens ({finish}){waited}{speed}")


def read_prompt(prompt: str | None) -> str:
    """``prompt``, or all of stdin when something is piped into it."""
    if prompt is not None:
        return prompt
    if sys.stdin.isatty():
        raise UserError("there is no prompt", '-p "Once upon a time", or --chat')
    return sys.stdin.read()
