"""Grammars that an answer must follow: JSON schemas, GBNF, Lark and regular expressions.

llguidance compiles them for a vocabulary and says before every token which ones may come next. It
is loaded with the first grammar: a run without one takes nothing of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tenp_edge.errors import UserError
from tenp_edge.runtime.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# What llama.cpp's grammars mark Lark with.
LARK_MARK = "%llguidance"
# A model that is not sure writes white space for ever where JSON allows any.
SPACES: dict[str, Any] = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,20}"}
# Keywords of a schema that llguidance does not know are no reason to refuse it.
LENIENT: dict[str, Any] = {"lenient": True}
# Compiled grammars that are kept: an agent sends the same tools with every request.
_KEPT = 8
# About 2 KB each; llguidance's own limit is five times as many.
_MOST_LEXER_STATES = 50_000
_SHOWN = 300
# Tokens that may stand before a text: a space, and a line's end as a byte.
_MOST_BEFORE = 4
# A line of the grammar in an error, and where in it; a schema's is of our making.
_LISTING = re.compile(r"\s*\d+ \| |\s*\^")
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
# What llguidance says of grammars without any text.
_ENDLESS = "NoExtensionBias"


class GrammarError(UserError):
    """A grammar or schema that no answer can follow."""


@dataclass(frozen=True)
class GrammarSource:
    """A grammar before it is compiled: ``kind`` is "json_schema", "gbnf", "lark", "regex", or
    "llguidance" for what `definition` makes of the others."""

    kind: str
    text: str

    @staticmethod
    def schema(schema: Mapping[str, Any] | bool, strict: bool = False) -> GrammarSource:
        """Any JSON that is valid under ``schema``: but for keywords that cannot be followed, which
        are refused where it is ``strict``, and left out else."""
        text = json.dumps({} if schema is True else schema)
        return GrammarSource("strict_json_schema" if strict else "json_schema", text)


class GrammarCompiler:
    """Compiles grammars for ``vocabulary``, whose model has ``vocab_size`` logits."""

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self._vocabulary, self._vocab_size = vocabulary, vocab_size
        self._tokenizer: LLTokenizer | None = None
        self.compiled = lru_cache(maxsize=_KEPT)(self._compile)

    def _compile(self, source: GrammarSource) -> CompiledGrammar:
        """``source`` for this vocabulary; the last ones are kept. Raises UserError for one that
        cannot be compiled, and where the package is missing."""
        llguidance = _library()
        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self._vocabulary, self._vocab_size)
        limits = llguidance.LLParserLimits(
            max_lexer_states=_MOST_LEXER_STATES, verbose_errors=False
        )
        matcher = llguidance.LLMatcher(
            self._tokenizer, definition(source), log_level=0, limits=limits
        )
        if matcher.is_error():
            raise _refused(source, matcher.get_error())
        compiled = CompiledGrammar(matcher, self._vocab_size)
        compiled.constraint().allowed()  # Some can be compiled and not begun.
        return compiled


@dataclass(frozen=True)
class CompiledGrammar:
    """A grammar for a vocabulary, which any number of sequences may follow at once."""

    matcher: LLMatcher
    vocab_size: int

    def constraint(self) -> Following:
        """A constraint of a new sequence, at its beginning."""
        return Following(self.matcher.deep_copy(), self.vocab_size)


class Following:
    """One sequence on its way through a grammar."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher, self._vocab_size = matcher, vocab_size

    def allowed(self) -> npt.NDArray[np.bool_]:
        """[vocab]: the tokens that may come next; end tokens where the text may end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        mask = np.unpackbits(bits, bitorder="little", count=self._vocab_size)
        return mask.view(np.bool_)

    def accept(self, token: int) -> None:
        """Go on after ``token``."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            why = _one_line(self._matcher.get_error())
            why = "it never ends, as a rule needs itself" if _ENDLESS in why else why
            raise GrammarError(
                f"the grammar cannot be followed: {why}", "a simpler grammar or schema"
            )


def _library() -> ModuleType:
    try:
        import llguidance
    except ImportError:
        raise UserError(
            "grammars need the package llguidance, which is not installed",
            "pip install llguidance",
        ) from None
    return llguidance


def _tokenizer(vocabulary: Vocabulary, vocab_size: int) -> LLTokenizer:
    """``vocabulary`` as llguidance knows it: the bytes of every token, and which are control
    tokens, which no text can spell."""
    llguidance = _library()
    ends = vocabulary.end_tokens
    if not ends:
        raise UserError("the file has no end token, so no grammar can end", "another file")
    plain = [vocabulary.piece(token) for token in range(vocabulary.size)]
    control = [token for token, piece in enumerate(plain) if not piece]
    for token in control:
        plain[token] = vocabulary.piece(token, special=True)
    tokens = _Tokens(plain, control, ends[0], vocabulary)
    made: LLTokenizer = llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(tokens), n_vocab=vocab_size, eos_token=list(ends)
    )
    tokens.greedy = made.greedy_tokenize
    return made


class _Tokens:
    """What `llguidance.TokenizerWrapper` asks for."""

    def __init__(
        self, tokens: Sequence[bytes], control: Sequence[int], end: int, vocabulary: Vocabulary
    ) -> None:
        self.tokens, self.special_token_ids = tokens, control
        self.eos_token_id, self.bos_token_id = end, vocabulary.bos
        self._vocabulary = vocabulary
        self.greedy: Callable[[str], list[int]] | None = None

    def __call__(self, raw: str | bytes) -> list[int]:
        """The tokens of text that a grammar leaves no choice about: its own bytes, neither more nor
        less. sentencepiece puts a space in front, unless a line has begun."""
        text = raw if isinstance(raw, str) else raw.decode(errors="replace")
        for before in ("", "\n"):
            tokens = self._vocabulary.tokenize(
                before + text, add_special=False, parse_special=False
            )
            for begin in range(min(len(tokens), _MOST_BEFORE)):
                if b"".join(self.tokens[token] for token in tokens[begin:]) == text.encode():
                    return tokens[begin:]
        return self.greedy(text) if self.greedy else []


def definition(source: GrammarSource) -> str:
    """``source`` as llguidance's own JSON. Raises UserError where that shows that it is wrong."""
    llguidance = _library()
    makers: dict[str, Callable[[str], str]] = {
        "json_schema": lambda text: llguidance.LLMatcher.grammar_from_json_schema(
            text, overrides=SPACES | LENIENT
        ),
        "strict_json_schema": lambda text: llguidance.LLMatcher.grammar_from_json_schema(
            text, overrides=SPACES
        ),
        "gbnf": lambda text: llguidance.grammar_from("gbnf", text),
        "lark": llguidance.LLMatcher.grammar_from_lark,
        "regex": llguidance.LLMatcher.grammar_from_regex,
        "llguidance": str,
    }
    try:
        return makers[source.kind](source.text)
    except (ValueError, RecursionError) as error:
        raise _refused(source, str(error)) from None


def _refused(source: GrammarSource, why: str) -> GrammarError:
    named = {
        "json_schema": "JSON schema",
        "strict_json_schema": "JSON schema",
        "regex": "regular expression",
    }.get(source.kind, "grammar")
    return GrammarError(f"the {named} cannot be used: {_one_line(why)}", "a simpler one")


def _one_line(text: str) -> str:
    """What is wrong, without the grammar that llguidance shows beside it."""
    lines = [line.strip() for line in text.splitlines() if not _LISTING.match(line)]
    why = " ".join(line for line in lines if line.strip("^ "))
    return _PLACE.sub("", why)[:_SHOWN]
