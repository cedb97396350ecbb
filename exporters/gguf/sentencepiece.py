"""Sentencepiece vocabularies: tokenizer.model.

It is a protocol-buffer message of which four fields matter, so it is read here, in forty lines,
rather than through a package that would need the protobuf runtime.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenp_edge.errors import UserError

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
