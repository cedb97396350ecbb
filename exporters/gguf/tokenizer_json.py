"""tokenizer.json, checked: what the rest reads out of it is there, and of its kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tenp_edge.disk import read_json
from tenp_edge.errors import UserError
from tenp_edge.runtime import tiktoken

_MOST_TOKENS = 2**24
_STEPS = ("normalizer", "pre_tokenizer", "post_processor")
_AGAIN = "download the tokenizer files again"


def read_tokenizer(directory: Path) -> Mapping[str, Any]:
    """tokenizer.json of ``directory``, or what it would hold for a tiktoken vocabulary; nothing for
    a lone sentencepiece model. Raises UserError for a broken one."""
    if tiktoken.is_tiktoken(directory):
        return tiktoken.tokenizer_json(directory)
    file = directory / "tokenizer.json"
    if not file.is_file():
        return {}
    tokenizer = read_json(file)
    for name, sound in _checks(tokenizer).items():
        if not sound:
            raise UserError(f"{file} is broken: {name}", _AGAIN)
    steps_of(tokenizer)
    return tokenizer


def read_added(file: Path) -> list[Mapping[str, Any]]:
    """The added tokens that tokenizer_config.json lists, as tokenizer.json would."""
    stated = read_json(file).get("added_tokens_decoder") if file.is_file() else None
    try:
        added: list[Mapping[str, Any]] = [
            {"special": False, **entry, "id": int(number)}
            for number, entry in (stated or {}).items()
        ]
    except (AttributeError, TypeError, ValueError):
        added = [{}]
    if not all(map(_is_added, added)):
        raise UserError(f"{file} is broken: added_tokens_decoder", _AGAIN)
    return added


def steps_of(tokenizer: Mapping[str, Any]) -> Tokenizer:
    """What it does beside its vocabulary: normalizer, pre-tokenizer, post-processor. Raises
    UserError where the tokenizers package does not read them."""
    empty = {"type": "BPE", "vocab": {}, "merges": []}
    kept = {key: tokenizer.get(key) for key in _STEPS}
    try:
        return Tokenizer.from_str(json.dumps({"version": "1.0", "model": empty, **kept}))
    except Exception as error:  # plain Exceptions are all that tokenizers raises
        why = " ".join(str(error).split())[:200]
        raise UserError(f"tokenizer.json cannot be read: {why}", _AGAIN) from None


def _checks(tokenizer: Mapping[str, Any]) -> dict[str, bool]:
    """What must hold, by what a message calls it."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens") or []
    checks = {
        "model": isinstance(model, dict),
        "added_tokens": isinstance(added, list) and all(map(_is_added, added)),
    }
    if isinstance(model, dict) and model.get("type") == "BPE":
        merges = model.get("merges")
        checks["vocab"] = _is_vocab(model.get("vocab"))
        checks["merges"] = isinstance(merges, list) and all(map(_is_merge, merges))
    return checks


def _is_vocab(vocab: Any) -> bool:
    return (
        isinstance(vocab, dict) and all(map(_is_id, vocab.values())) and all(map(_is_text, vocab))
    )


def _is_merge(merge: Any) -> bool:
    parts = merge.split(" ", 1) if isinstance(merge, str) else merge
    return isinstance(parts, list) and len(parts) == 2 and all(map(_is_text, parts))


def _is_added(token: Any) -> bool:
    return (
        isinstance(token, dict)
        and _is_id(token.get("id"))
        and _is_text(token.get("content"))
        and isinstance(token.get("special"), bool)
    )


def _is_id(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST_TOKENS


def _is_text(value: Any) -> bool:
    """Text that UTF-8 can write: not half a surrogate pair, which JSON can spell."""
    if not isinstance(value, str):
        return False
    return value.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in value)
