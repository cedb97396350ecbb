"""Grammars for the vocabularies of our families: what is generated follows them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from jsonschema import validate
from support.edits import refusal
from support.runtime_cases import CheckpointOf
from support.tiktoken_cases import write_tiktoken
from support.tokenizer_cases import HARD, sentencepiece_json, train_sentencepiece
from support.vocabularies import byte_vocabulary

from tenp_edge.runtime.directory_vocabulary import open_vocabulary
from tenp_edge.runtime.generation import Generation
from tenp_edge.runtime.grammars import GrammarCompiler, GrammarSource
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.vocabulary import Vocabulary

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"type": "number"},
        "tags": {"type": "array", "items": {"enum": ["a", "Straße", "中文"]}, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Node"}]},
    },
    "required": ["name", "size", "next"],
    "additionalProperties": False,
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}},
            "required": ["on"],
            "additionalProperties": False,
        }
    },
}


def _sentencepiece(directory: Path) -> None:
    train_sentencepiece(directory)


def _sentencepiece_json(directory: Path) -> None:
    sentencepiece_json(train_sentencepiece(directory.parent / "lone"), directory)


def _tiktoken(directory: Path) -> None:
    write_tiktoken(directory, HARD)


KINDS: dict[str, Callable[[Path], None]] = {
    "sentencepiece": _sentencepiece,
    "sentencepiece in tokenizer.json": _sentencepiece_json,
    "tiktoken": _tiktoken,
}


@pytest.fixture(params=["byte level", *KINDS])
def vocabulary(
    request: pytest.FixtureRequest, checkpoint_of: CheckpointOf, tmp_path: Path
) -> Vocabulary:
    if request.param == "byte level":
        return open_vocabulary(checkpoint_of("mixtral"))
    directory = tmp_path / "tokenizer"
    KINDS[request.param](directory)
    return open_vocabulary(directory)


def generated(
    vocabulary: Vocabulary, source: GrammarSource, seed: int, extra: int = 0
) -> tuple[str, str | None]:
    """Text of random logits, which like to end, and how it ended. ``extra``: rows of logits beyond
    the vocabulary."""
    size = vocabulary.size + extra
    grammar = GrammarCompiler(vocabulary, size).compiled(source)
    options = SamplingOptions(seed=seed, temperature=1.0, top_k=0, top_p=1.0, grammar=grammar)
    generation = Generation(vocabulary, [1], options, 600)
    generator = np.random.default_rng(seed)
    pieces = []
    while not generation.finished:
        logits = generator.normal(size=size).astype(np.float32)
        logits[list(vocabulary.end_tokens)] += 8
        pieces.append(generation.take(logits))
    return "".join(piece.text for piece in pieces), pieces[-1].finish


def test_json_is_valid(vocabulary: Vocabulary) -> None:
    for seed in range(5):
        text, finish = generated(vocabulary, GrammarSource.schema(SCHEMA), seed, extra=7)
        assert finish == "stop", text
        validate(json.loads(text), SCHEMA)


@pytest.mark.parametrize(
    ("kind", "text", "pattern"),
    [
        ("regex", "[0-9]{3}-[a-f]+", "[0-9]{3}-[a-f]+"),
        ("gbnf", 'root ::= ("yes" | "no") " "? [a-z]{2,3}', "(yes|no) ?[a-z]{2,3}"),
        ("lark", "start: A+\\nA: /[xyz]/", "[xyz]+"),
    ],
)
def test_other_grammars(vocabulary: Vocabulary, kind: str, text: str, pattern: str) -> None:
    source = GrammarSource(kind, text.replace("\\n", "\n"))
    for seed in range(3):
        found, finish = generated(vocabulary, source, seed)
        assert finish == "stop" and re.fullmatch(pattern, found), found


def test_the_end_is_allowed_where_the_text_may_end_alone() -> None:
    vocabulary = byte_vocabulary(["<|mark|>"])
    grammar = GrammarCompiler(vocabulary, vocabulary.size).compiled(GrammarSource("regex", "ab?"))
    constraint, other = grammar.constraint(), grammar.constraint()
    for allowed in ("a", "b", ""):
        tokens = [int(token) for token in np.flatnonzero(constraint.allowed())]
        named = [vocabulary.piece(token).decode() for token in tokens if token]
        assert named == [allowed] * bool(allowed)
        assert (0 in tokens) == (allowed != "a")
        constraint.accept(tokens[-1])
    # Sequences of one grammar do not know of each other.
    assert [int(token) for token in np.flatnonzero(other.allowed())] == [ord("a") + 2]


def test_a_grammar_is_compiled_once() -> None:
    vocabulary = byte_vocabulary()
    compiler, source = GrammarCompiler(vocabulary, vocabulary.size), GrammarSource("regex", "a")
    assert compiler.compiled(source) is compiler.compiled(GrammarSource("regex", "a"))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (
            "json_schema",
            '{"type": "objekt"}',
            "the JSON schema cannot be used: Invalid type: objekt",
        ),
        (
            "json_schema",
            '{"$ref": "http://example.com/s"}',
            "the JSON schema cannot be used: Resource 'http://example.com/s' is not present in a "
            "registry and retrieving it failed: Default retriever does not fetch resources",
        ),
        (
            "json_schema",
            '{"type": "string", "pattern": "(?<=a)b"}',
            "the JSON schema cannot be used: regex parse error: (?<=a)b error: look-around, "
            "including look-ahead and look-behind, is not supported",
        ),
        ("lark", "start: a", 'the grammar cannot be used: unknown name: "a"'),
        (
            "regex",
            "(a",
            'the regular expression cannot be used: invalid regex "(a" (in regex): regex parse '
            "error: (a error: unclosed group",
        ),
        (
            "gbnf",
            "root ::= " + "(" * 5000 + '"a"' + ")" * 5000,
            "the grammar cannot be used: Failed to convert the grammar from GBNF to Lark: maximum "
            "recursion depth exceeded",
        ),
    ],
)
def test_refused(kind: str, text: str, message: str) -> None:
    vocabulary = byte_vocabulary()
    compiler = GrammarCompiler(vocabulary, vocabulary.size)
    found, hint = refusal(lambda: compiler.compiled(GrammarSource(kind, text)))
    assert (found, hint) == (message, "a simpler one")


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    vocabulary = byte_vocabulary()
    compiler = GrammarCompiler(vocabulary, vocabulary.size)
    assert refusal(lambda: compiler.compiled(GrammarSource("regex", "a"))) == (
        "grammars need the package llguidance, which is not installed",
        "pip install llguidance",
    )
