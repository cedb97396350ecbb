"""Sentencepiece vocabularies in tokenizer.json: accepted by what they do to text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.tokenizer_cases import sentencepiece_json, train_sentencepiece

from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf.pieces_json import check_merges, check_pieces, from_json
from tenp_edge.exporters.gguf.sentencepiece import NORMAL, USER_DEFINED

ORIGINAL = "try: the tokenizer.model of the original model"
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory: Path = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece_json(train_sentencepiece(directory), directory)
    found: dict[str, Any] = json.loads((directory / "tokenizer.json").read_text())
    return found


def split(pattern: dict[str, str], behavior: str = "Isolated") -> dict[str, Any]:
    return {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False}


def metaspace(prepend: str, split: bool) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend, "split": split}


@pytest.mark.parametrize(
    ("changes", "prefix"),
    [
        ({}, True),
        ({"normalizer": SPACES}, False),
        (
            {"normalizer": SPACES, "pre_tokenizer": split({"String": " "}, "MergedWithPrevious")},
            False,
        ),
        ({"normalizer": None, "pre_tokenizer": metaspace("first", False)}, True),
        ({"normalizer": None, "pre_tokenizer": metaspace("never", False)}, False),
        # The sample's digits are pieces of their own.
        ({"normalizer": SPACES, "pre_tokenizer": split({"Regex": "[0-9]"})}, False),
    ],
)
def test_what_llama_cpp_does_as_well(
    changes: dict[str, Any], prefix: bool, mixtral: dict[str, Any]
) -> None:
    check_pieces(mixtral | changes)
    assert from_json(mixtral | changes).add_space_prefix == prefix


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"normalizer": {"type": "Lowercase"}},
            "changes text before it splits it, as llama.cpp does not",
        ),
        (
            {"normalizer": None, "pre_tokenizer": {"type": "Whitespace"}},
            "changes text before it splits it, as llama.cpp does not",
        ),
        (
            {"normalizer": SPACES, "pre_tokenizer": split({"Regex": "l"})},
            "cuts text between 'l' and 'l', as llama.cpp does not, and has tokens across ('ello')",
        ),
        (
            {"normalizer": None, "pre_tokenizer": metaspace("never", True)},
            "cuts text between '▁' and '▁', as llama.cpp does not, and has tokens across ('▁▁')",
        ),
    ],
)
def test_what_llama_cpp_does_not(
    changes: dict[str, Any], why: str, mixtral: dict[str, Any]
) -> None:
    with pytest.raises(UserError) as caught:
        check_pieces(mixtral | changes)
    assert str(caught.value) == f"tokenizer.json {why}\n{ORIGINAL}"


def test_pairs_that_are_not_joined(mixtral: dict[str, Any]) -> None:
    check_merges(mixtral)
    model = mixtral["model"]
    fewer = mixtral | {"model": model | {"merges": model["merges"][::2]}}
    with pytest.raises(UserError) as caught:
        check_merges(fewer)
    assert str(caught.value) == (
        "tokenizer.json joins only 50 % of the pairs that make a token, llama.cpp would join them "
        f"all\n{ORIGINAL}"
    )


def test_user_defined_symbols(mixtral: dict[str, Any]) -> None:
    """What the pre-tokenizer cuts out is a token wherever it stands."""
    vocab = mixtral["model"]["vocab"] | {"<|x|>": len(mixtral["model"]["vocab"])}
    changed = mixtral | {
        "model": mixtral["model"] | {"vocab": vocab},
        "pre_tokenizer": split({"Regex": r"<\|x\|>"}),
    }
    types = from_json(changed).types
    assert types[-1] == USER_DEFINED and types[vocab["▁"]] == NORMAL
    broken = changed | {"pre_tokenizer": split({"Regex": r"\p{Han}+"})}
    assert from_json(broken).types[-1] == NORMAL
