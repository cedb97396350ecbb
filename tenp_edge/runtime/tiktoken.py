"""A tiktoken vocabulary (Moonlight, Kimi) as the tokenizer.json that says the same.

tiktoken.model has a token a line: its bytes in base64, and its rank, which is its id and at once
its place among the merges. tokenizer_config.json has the added tokens. How text is split into words
stands in the tokenizer's Python code alone, as ``pat_str``: it is parsed for that, never run.
"""

from __future__ import annotations

import ast
import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tenp_edge.disk import read_json
from tenp_edge.errors import UserError
from tenp_edge.runtime.byte_alphabet import spelled

RANKS_NAME = "tiktoken.model"
CODE = "tokenization_*.py"  # where models on the hub keep a tokenizer of their own
_AGAIN = "download it again"
_MAX_BYTES = 64 * 2**20
_MAX_CODE_BYTES = 2**20


def is_tiktoken(directory: Path) -> bool:
    """Whether the tokenizer of ``directory`` is one, and has not been converted yet."""
    return (directory / RANKS_NAME).is_file() and not (directory / "tokenizer.json").is_file()


def tokenizer_json(directory: Path) -> dict[str, Any]:
    """What a tokenizer.json of that tokenizer would hold. Raises UserError for a broken one."""
    ranks = _ranks(directory / RANKS_NAME)
    split = {"type": "Split", "pattern": {"Regex": _pattern(directory)}, "behavior": "Isolated"}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    settings = directory / "tokenizer_config.json"
    added = _added(read_json(settings) if settings.is_file() else {}, len(ranks))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [split | {"invert": False}, to_bytes | {"use_regex": False}],
        },
        "post_processor": None,
        "decoder": to_bytes | {"use_regex": False},
        # A word that is a token is that token: tiktoken looks there first.
        "model": {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": ranks,
            "merges": list(_merges(ranks)),
        },
    }


def _ranks(file: Path) -> dict[str, int]:
    """Every token, a character a byte, and its rank."""
    if file.stat().st_size > _MAX_BYTES:
        raise UserError(f"{file} is larger than {_MAX_BYTES >> 20} MiB", _AGAIN)
    ranks: dict[str, int] = {}
    try:
        for line in file.read_bytes().splitlines():
            token, _, rank = line.partition(b" ")
            if line:
                ranks[spelled(base64.b64decode(token, validate=True))] = int(rank)
    except (binascii.Error, ValueError):
        raise UserError(f"{file} is not a tiktoken vocabulary", _AGAIN) from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not ranks:
        raise UserError(f"{file} is not a tiktoken vocabulary: ranks are missing", _AGAIN)
    return ranks


def _merges(ranks: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Every pair of tokens that makes a token, in the order of what it makes: tiktoken joins the
    two neighbours that make the token of the lowest rank."""
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = [pair for pair in cuts if pair[0] in ranks and pair[1] in ranks]
        yield from sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _added(settings: Mapping[str, Any], first: int) -> list[dict[str, Any]]:
    """The added tokens, with names for the ids between them that have none."""
    stated = settings.get("added_tokens_decoder") or {}
    try:
        entries = {int(number): entry for number, entry in stated.items()}
        last = max(entries, default=first - 1)
        named = {number: str(entry["content"]) for number, entry in entries.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError("tokenizer_config.json: added_tokens_decoder is broken", _AGAIN) from None
    if last - first > 2**16:
        raise UserError(f"tokenizer_config.json: added token {last} is out of range", _AGAIN)
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {
            "id": number,
            "content": named.get(number, f"<|reserved_token_{number}|>"),
            "special": bool(entries.get(number, {}).get("special", True)),
            **flags,
        }
        for number in range(first, last + 1)
    ]


# -- how text is split -----------------------------------------------------------------------------


def _pattern(directory: Path) -> str:
    """``pat_str`` of the tokenizer's code. Raises UserError when there is none."""
    for file in sorted(directory.glob(CODE)):
        pattern = _pattern_in(file)
        if pattern is not None:
            return pattern
    raise UserError(
        f"{directory / RANKS_NAME} does not say how text is split: the tokenizer's {CODE} does, "
        "which is missing or has no pat_str",
        f"copy the model's {CODE} there; it is read, not run",
    )


def _pattern_in(file: Path) -> str | None:
    if file.stat().st_size > _MAX_CODE_BYTES:
        return None
    try:
        tree = ast.parse(file.read_bytes())
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in nodes:
        if any(isinstance(target, ast.Name) and target.id == "pat_str" for target in node.targets):
            return _text(node.value)
    return None


def _text(node: ast.expr) -> str | None:
    """The text of a string, or of "|".join([strings]); None for anything else."""
    try:
        match node:
            case ast.Call(
                func=ast.Attribute(value=ast.Constant(value=str(glue)), attr="join"), args=[parts]
            ):
                return glue.join(ast.literal_eval(parts))
            case _:
                value = ast.literal_eval(node)
                return value if isinstance(value, str) else None
    except (TypeError, ValueError):
        return None
