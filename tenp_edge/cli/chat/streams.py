"""stdin and stdout as they may be: a terminal, a pipe, closed, in an encoding without letters."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TextIO

from tenp_edge.errors import UserError


def output() -> TextIO:
    """stdout. A terminal's letters are its own affair, everywhere else text is UTF-8."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper):
        encoding = stream.encoding if stream.isatty() else "utf-8"
        stream.reconfigure(encoding=encoding, errors="replace")
    return stream


def typed() -> bool:
    """Whether somebody sits at stdin."""
    return sys.stdin.isatty()


def plain(stream: TextIO) -> bool:
    """Whether ``stream`` takes no colours."""
    return not stream.isatty() or bool(os.environ.get("NO_COLOR")) or is_dumb()


def is_dumb() -> bool:
    """Whether the terminal knows no sequences, neither colours nor moves."""
    return os.environ.get("TERM") == "dumb"


def piped_text() -> str:
    """All of stdin. Raises UserError for what is not UTF-8."""
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:
        return sys.stdin.read()
    try:
        text: str = buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte {error.start + 1} of what is piped in is not UTF-8", "text in UTF-8"
        ) from None
    return text.replace("\r\n", "\n")


def as_text(argument: str, name: str) -> str:
    """``argument`` as UTF-8, also where the locale has no letters. Raises UserError for bytes that
    are no text."""
    with suppress(UnicodeEncodeError):
        argument.encode()
        return argument
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        raise UserError(f"{name} is not UTF-8", "text in UTF-8") from None
