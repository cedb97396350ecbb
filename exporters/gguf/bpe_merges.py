"""What the merges of a BPE make of a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

Pair = tuple[str, str]
# Tokens that are tried: enough to tell 1 % apart, and a fraction of a second.
_TRIED = 4096


def rebuilt_ratio(model: Mapping[str, Any]) -> float:
    """Share of the tokens that the merges make out of their own bytes, from 0 to 1.

    ``model``: that of tokenizer.json. Tried on ``some_tokens``.
    """
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(pairs(model["merges"]))))}
    tried = some_tokens(model["vocab"])
    return sum(merge(token, ranks) == [token] for token in tried) / max(1, len(tried))


def listed_ratio(model: Mapping[str, Any]) -> float:
    """Share of the pairs of tokens that make a token which are among the merges, from 0 to 1."""
    vocab, merges = model["vocab"], set(pairs(model["merges"]))
    made = [
        (token[:cut], token[cut:])
        for token in some_tokens(vocab)
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    ]
    return sum(pair in merges for pair in made) / max(1, len(made))


def some_tokens(vocab: Mapping[str, int]) -> list[str]:
    """Up to 8,191 tokens, evenly over the vocabulary."""
    tokens = sorted(vocab, key=vocab.__getitem__)
    return tokens[:: max(1, len(tokens) // _TRIED)]


def merge(word: str, ranks: Mapping[Pair, int]) -> list[str]:
    """``word`` as byte-pair encoding cuts it: the pair of lowest rank first, leftmost of equals."""
    symbols = list(word)
    while len(symbols) > 1:
        lowest = min((ranks.get(pair, len(ranks)), at) for at, pair in enumerate(pairwise(symbols)))
        rank, at = lowest
        if rank == len(ranks):
            break
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return symbols


def pairs(merges: Sequence[Any]) -> list[Pair]:
    """The merges in either spelling of tokenizer.json: "a b", or ["a", "b"]."""
    split = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges)
    return [(left, right) for left, right in split]


def tokens_by_id(vocab: Mapping[str, int]) -> list[str]:
    """The tokens in the order of their ids; empty where an id has none."""
    tokens = [""] * (max(vocab.values(), default=-1) + 1)
    for token, number in vocab.items():
        tokens[number] = token
    return tokens
