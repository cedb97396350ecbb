"""Log probabilities as the APIs spell them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tenp_edge.runtime.generation import Piece
from tenp_edge.runtime.vocabulary import Vocabulary

Body = dict[str, Any]


def text_of(vocabulary: Vocabulary, token: int) -> str:
    return vocabulary.piece(token, special=True).decode(errors="replace")


def chat_entry(vocabulary: Vocabulary, piece: Piece) -> Body:
    """One token, as chats and llama-server's completions have it."""
    assert piece.logprobs is not None
    best = [_entry(vocabulary, token, value) for token, value in piece.logprobs.best]
    return {**_entry(vocabulary, piece.token, piece.logprobs.chosen), "top_logprobs": best}


def _entry(vocabulary: Vocabulary, token: int, value: float) -> Body:
    raw = vocabulary.piece(token, special=True)
    return {
        "id": token,
        "token": raw.decode(errors="replace"),
        "logprob": value,
        "bytes": list(raw),
    }


def _by_text(vocabulary: Vocabulary, best: Sequence[tuple[int, float]]) -> dict[str, float]:
    """The better one of tokens that look alike: parts of characters do."""
    found: dict[str, float] = {}
    for token, value in best:
        found.setdefault(text_of(vocabulary, token), value)
    return found


def completion_lists(vocabulary: Vocabulary, pieces: Sequence[Piece], offset: int) -> Body:
    """Tokens as OpenAI's completions have them; ``offset``: where the first begins in the text."""
    tokens = [text_of(vocabulary, piece.token) for piece in pieces]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    told = [piece.logprobs for piece in pieces]
    return {
        "tokens": tokens,
        "token_logprobs": [None if each is None else each.chosen for each in told],
        "top_logprobs": [
            None if each is None else _by_text(vocabulary, each.best) for each in told
        ],
        "text_offset": offsets,
    }
