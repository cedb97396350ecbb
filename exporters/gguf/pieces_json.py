"""Sentencepiece vocabularies spelled as tokenizer.json: BPE over characters, with byte fallback."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf.bpe_merges import listed_ratio, pairs, tokens_by_id
from tenp_edge.exporters.gguf.pretokenizers import PROBE
from tenp_edge.exporters.gguf.sentencepiece import (
    BYTE,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Pieces,
)
from tenp_edge.exporters.gguf.tokenizer_json import steps_of

_ORIGINAL = "the tokenizer.model of the original model"


def from_json(tokenizer: Mapping[str, Any]) -> Pieces:
    """The same vocabulary out of tokenizer.json (BPE with byte fallback).

    llama.cpp merges the neighbours whose union scores best, so the rank of the merge that first
    makes a token, negated, is its score: the order of merges is kept exactly.
    """
    model = tokenizer["model"]
    tokens = tokens_by_id(model["vocab"])
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs(model["merges"])):
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
    patterns = []
    for part in node.get("pretokenizers", [node]):
        text = (part.get("pattern") or {}).get("Regex")
        if part.get("type") == "Split" and part.get("behavior") == "Isolated" and text:
            with suppress(re.error):
                patterns.append(re.compile(text))
    return patterns


def is_sentencepiece(tokenizer: Mapping[str, Any]) -> bool:
    """Whether tokenizer.json is a sentencepiece vocabulary rather than byte-level BPE."""
    model = tokenizer.get("model") or {}
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def space_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether tokenizer.json puts a space in front of a text."""
    return "".join(_pieces(tokenizer, "a")).startswith(("▁", " "))


def check_pieces(tokenizer: Mapping[str, Any]) -> None:
    """Raise UserError where the tokenizer does more to a text than llama.cpp does, which writes its
    spaces as low lines. A cut that no token crosses is nothing."""
    pieces = _pieces(tokenizer, PROBE)
    expected = PROBE.replace(" ", "▁")
    if "".join(pieces).removeprefix("▁") != expected:
        raise UserError(
            "tokenizer.json changes text before it splits it, as llama.cpp does not", _ORIGINAL
        )
    added = {token["content"] for token in tokenizer.get("added_tokens") or []}
    learned = [t for t in tokenizer["model"]["vocab"] if t not in added and not _is_byte(t)]
    for left, right in pairwise(pieces):
        border = left[-1:] + right[:1]
        crossing = next((token for token in learned if border in token), None)
        if crossing is not None:
            raise UserError(
                f"tokenizer.json cuts text between {left[-20:]!r} and {right[:20]!r}, as llama.cpp "
                f"does not, and has tokens across ({crossing!r})",
                _ORIGINAL,
            )


def check_merges(tokenizer: Mapping[str, Any]) -> None:
    """Raise UserError where neighbours that make a token are not to be joined, as sentencepiece,
    and so llama.cpp, always does."""
    ratio = listed_ratio(tokenizer["model"])
    if ratio < 0.99:
        raise UserError(
            f"tokenizer.json joins only {100 * ratio:.0f} % of the pairs that make a token, "
            "llama.cpp would join them all",
            _ORIGINAL,
        )


def _pieces(tokenizer: Mapping[str, Any], text: str) -> list[str]:
    """``text`` as its normalizer and pre-tokenizer leave it."""
    steps = steps_of(tokenizer)
    if steps.normalizer is not None:
        text = steps.normalizer.normalize_str(text)
    if steps.pre_tokenizer is None:
        return [text]
    return [piece for piece, _ in steps.pre_tokenizer.pre_tokenize_str(text)]
