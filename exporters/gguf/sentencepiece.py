"""Sentencepiece vocabularies: tokenizer.model, or the same thing spelled as tokenizer.json.

tokenizer.model is a protocol-buffer message of which four fields matter, so it is read here, in
forty lines, rather than through a package that would need the protobuf runtime.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf.tokenizer_json import steps_of

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


@dataclass(frozen=True)
class Pieces:
    """Tokens by id with score and type, and how text is prepared."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    add_space_prefix: bool
    remove_extra_whitespaces: bool


def read_model(file: Path) -> Pieces:
    """The vocabulary of a sentencepiece BPE model (tokenizer.model)."""
    pieces: list[tuple[str, float, int]] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _message(file.read_bytes()):
            if number == 1:
                piece = dict(_message(value))
                score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
                pieces.append((piece[1].decode(), score, piece.get(3, NORMAL)))
            elif number == 2:
                trainer = dict(_message(value))
            elif number == 3:
                normalizer = dict(_message(value))
    except (IndexError, KeyError, TypeError, ValueError, struct.error):
        raise UserError(f"{file.name} is not a sentencepiece model", "download it again") from None
    kind = _MODEL_TYPES.get(trainer.get(3, 1), "unknown")
    if kind != "bpe":
        raise UserError(f"{file.name} is a {kind} model; llama.cpp's tokenizer is for bpe models")
    return Pieces(
        tokens=[piece for piece, _, _ in pieces],
        scores=[score for _, score, _ in pieces],
        types=[type_ for _, _, type_ in pieces],
        add_space_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
    )


def from_json(tokenizer: Mapping[str, Any]) -> Pieces:
    """The same vocabulary out of tokenizer.json (BPE with byte fallback).

    llama.cpp merges the neighbours whose union scores best, so the rank of the merge that first
    makes a token, negated, is its score: the order of merges is kept exactly.
    """
    model = tokenizer["model"]
    vocab: dict[str, int] = model["vocab"]
    tokens = [""] * (max(vocab.values(), default=-1) + 1)
    for token, number in vocab.items():
        tokens[number] = token
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    isolated, unknown = _isolated(tokenizer), model.get("unk_token")
    types = [_type(token, unknown, isolated) for token in tokens]
    # Single characters are never made by a merge; their score is never compared with one.
    scores = [-float(ranks[t]) if t in ranks else -1e6 for t in tokens]
    return Pieces(tokens, scores, types, space_prefix(tokenizer), False)


def _type(token: str, unknown: str | None, isolated: Sequence[re.Pattern[str]]) -> int:
    if not token:
        return UNUSED
    if token == unknown:
        return UNKNOWN
    if _is_byte(token):
        return BYTE
    return USER_DEFINED if any(pattern.fullmatch(token) for pattern in isolated) else NORMAL


def _isolated(tokenizer: Mapping[str, Any]) -> list[re.Pattern[str]]:
    """What the pre-tokenizer cuts out of a text: sentencepiece's user-defined symbols, which are
    tokens wherever they stand."""
    node = json.loads(steps_of(tokenizer).to_str())["pre_tokenizer"] or {}
    found = []
    for part in node.get("pretokenizers", [node]):
        text = (part.get("pattern") or {}).get("Regex")
        if part.get("type") == "Split" and part.get("behavior") == "Isolated" and text:
            with suppress(re.error):
                found.append(re.compile(text))
    return found


def is_sentencepiece(tokenizer: Mapping[str, Any]) -> bool:
    """Whether tokenizer.json is a sentencepiece vocabulary rather than byte-level BPE."""
    model = tokenizer.get("model") or {}
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def space_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether tokenizer.json puts a space in front of a text."""
    steps, text = steps_of(tokenizer), "a"
    if steps.normalizer is not None:
        text = steps.normalizer.normalize_str(text)
    if steps.pre_tokenizer is not None:
        text = "".join(piece for piece, _ in steps.pre_tokenizer.pre_tokenize_str(text))
    return bool(text.startswith(("▁", " ")))


def _message(data: bytes) -> Iterator[tuple[int, Any]]:
    """Fields of a protobuf message: (number, varint | raw bytes)."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}[wire]
        if at + size > len(data):
            raise ValueError("cut short")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
