"""How text is split into words: recognised by what it does, and as llama.cpp does it.

The tokenizers here have tokens that cross every border between two words of the text, so that
llama.cpp gives other tokens wherever it sees another border.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.byte_level_cases import (
    BAILING,
    LLAMA3,
    O200K,
    QWEN2,
    STYLES,
    TO_BYTES,
    byte_level,
    spaced_before_capitals,
    splits,
    vocabulary_file,
    without_marks,
)
from support.tokenizer_cases import HARD, NASTY
from tokenizers import Regex, Tokenizer, pre_tokenizers

from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf.pretokenizers import PROBE, detect
from tenp_edge.exporters.gguf.splitters import SPLITTERS
from tenp_edge.runtime.llamacpp.model import LlamaCppModel

Make = Callable[[str], Path]
# Han characters that llama.cpp's kimi-k2 does not count as such: no ideographs of its own.
_OTHER_HAN = "々〇⺀"
_WIDE_SPACES = "\u2003\u3000"


def spared(style: str, text: str) -> str:
    """``text`` without what llama.cpp is known to split otherwise than models of this style."""
    text = unicodedata.normalize("NFC", text) if STYLES[style].nfc else text
    if style in ("gpt-4o", "tekken"):
        return spaced_before_capitals(without_marks(text), ascii_too=False)
    if style == "kimi-k2":
        for letter in _OTHER_HAN:
            text = text.replace(letter, "")
        return spaced_before_capitals(without_marks(text), ascii_too=True)
    if style == "deepseek-llm":
        return text.translate(dict.fromkeys(map(ord, _WIDE_SPACES)))
    return text


@pytest.mark.parametrize("style", STYLES)
def test_llama_cpp_splits_as_the_tokenizer_does(
    style: str, tmp_path: Path, checkpoint_of: Make
) -> None:
    text = spared(style, HARD)
    tokenizer = byte_level(tmp_path, style, crossing=text)
    assert found(tmp_path, bos=STYLES[style].bos) == style
    file = vocabulary_file(tmp_path, checkpoint_of("qwen3_moe"), 20000)
    with LlamaCppModel(file, vocab_only=True) as model:
        for line in (text, *text.splitlines(), f"{text}<|end|>{text}<tool_call> x"):
            assert model.tokenize(line) == tokenizer.encode(line).ids, line
        assert model.detokenize(model.tokenize(text)) == text


# What docs/formats/tokenizers.md says that llama.cpp splits otherwise. Where one of these no longer
# differs, llama.cpp was repaired: take the text out of ``spared`` and out of the page.
KNOWN_TO_DIFFER = {
    "gpt-4o": ["नमस्ते", "ПриветМир", "fooÉcole", "e\u0301te\u0301", "مُحَمَّد"],
    "tekken": ["नमस्ते", "ПриветМир", "fooÉcole", "e\u0301te\u0301", "مُحَمَّد"],
    "kimi-k2": ["नमस्ते", "ПриветМир", "getElement", "e\u0301te\u0301", "人々", "二〇"],
    "qwen2": ["e\u0301te\u0301"],
    "olmo": ["e\u0301te\u0301"],
    "deepseek-llm": ["a \u3000 b", "a \u2003x"],
}


@pytest.mark.parametrize("style", KNOWN_TO_DIFFER)
def test_where_llama_cpp_splits_otherwise(style: str, tmp_path: Path, checkpoint_of: Make) -> None:
    tokenizer = byte_level(tmp_path, style, crossing="\n".join(KNOWN_TO_DIFFER[style]))
    file = vocabulary_file(tmp_path, checkpoint_of("qwen3_moe"), 20000)
    with LlamaCppModel(file, vocab_only=True) as model:
        for text in KNOWN_TO_DIFFER[style]:
            assert model.tokenize(text) != tokenizer.encode(text).ids, text


def test_every_two_ways_differ_on_the_probe() -> None:
    ways = {splitter.expressions for splitter in SPLITTERS}
    pieces = {
        tuple(pre_tokenizers.Sequence([*splits(*way), TO_BYTES]).pre_tokenize_str(PROBE))
        for way in ways
    }
    assert len(pieces) == len(ways)
    assert unicodedata.normalize("NFC", PROBE) == PROBE


def tokenizer_json(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "tokenizer.json").read_text())
    return found


def found(directory: Path, **changes: Any) -> str:
    bos = changes.pop("bos", True)
    return detect(tokenizer_json(directory) | changes, bos)


def steps(*parts: Any) -> Any:
    """The pre-tokenizer that does ``parts``, as tokenizer.json spells it."""
    tokenizer = Tokenizer.from_str(
        '{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}'
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(parts))
    return json.loads(tokenizer.to_str())["pre_tokenizer"]


def test_the_spelling_does_not_matter(tmp_path: Path) -> None:
    byte_level(tmp_path, "qwen2")
    spelled = QWEN2.replace(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?:[sStTmMdD]|[rR][eE]|[vV][eE]|[lL]{2})"
    )
    assert spelled != QWEN2
    assert found(tmp_path, pre_tokenizer=steps(*splits(spelled), TO_BYTES)) == "qwen2"
    assert found(tmp_path, pre_tokenizer=steps(*splits(BAILING), TO_BYTES)) == "qwen2"
    removed = pre_tokenizers.Split(Regex(QWEN2), "removed", invert=True)
    assert found(tmp_path, pre_tokenizer=steps(removed, TO_BYTES)) == "qwen2"
    with_slash = O200K.replace(
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)", "('s|'S|'t|'T|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    )
    assert found(tmp_path, pre_tokenizer=steps(*splits(with_slash), TO_BYTES)) == "gpt-4o"


def test_lfm2_splits_as_llama_3(tmp_path: Path) -> None:
    """llama.cpp's own name for it, lfm2, means the same there."""
    byte_level(tmp_path, "llama-bpe")
    isolated = pre_tokenizers.Split(Regex(LLAMA3), "isolated")
    raw = tokenizer_json(tmp_path)
    raw["pre_tokenizer"] = steps(isolated, TO_BYTES)
    assert detect(raw) == "llama-bpe"
    raw["model"]["ignore_merges"] = False
    assert detect(raw) == "smaug-bpe"


def refusal(directory: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        found(directory, **changes)
    return str(caught.value)


KNOWN = ", ".join(sorted(splitter.name for splitter in SPLITTERS))


def test_what_splits_otherwise_is_refused_with_the_first_piece(tmp_path: Path) -> None:
    byte_level(tmp_path, "llama-bpe")
    for pre_tokenizer, first in (
        (
            {"type": "Whitespace"},
            "'say' is a piece, where deepseek-llm, which comes nearest, has ' say'",
        ),
        (
            steps(*splits(LLAMA3.replace("{1,3}", "{1,2}")), TO_BYTES),
            "'12' is a piece, where llama-bpe, which comes nearest, has '123'",
        ),
        (
            steps(
                *splits(LLAMA3), pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
            ),
            "' We' is a piece, where qwen2, which comes nearest, has 'We'",
        ),
    ):
        assert refusal(tmp_path, pre_tokenizer=pre_tokenizer) == (
            f"tokenizer.json splits text in a way that llama.cpp is not known to have: {first}\n"
            f"try: the tokenizer of the original model; known: {KNOWN}, sentencepiece"
        )


def test_a_normalizer_is_known_by_what_it_does(tmp_path: Path) -> None:
    byte_level(tmp_path, "gpt-2")
    assert found(tmp_path, normalizer={"type": "NFC"}) == "olmo"
    assert found(tmp_path, normalizer={"type": "Sequence", "normalizers": []}) == "gpt-2"
    assert refusal(tmp_path, normalizer={"type": "Lowercase"}) == (
        'tokenizer.json changes text before it splits it, as llama.cpp does not: "We\'ll" becomes '
        '"we\'ll"\ntry: the tokenizer of the original model'
    )
    assert refusal(tmp_path, normalizer={"type": "NFKC"}).startswith(
        "tokenizer.json changes text before it splits it, as llama.cpp does not: 'x²½' becomes "
    )
    assert refusal(tmp_path, normalizer={"type": "Nonsense"}).startswith(
        "tokenizer.json cannot be read: "
    )


def test_words_that_are_tokens(tmp_path: Path, checkpoint_of: Make) -> None:
    """gpt-oss ignores merges, llama.cpp's gpt-4o does not: the same, where the merges make the
    tokens."""
    byte_level(tmp_path, "gpt-4o")
    raw = tokenizer_json(tmp_path)
    assert found(tmp_path, model=raw["model"] | {"ignore_merges": True}) == "gpt-4o"
    without = raw["model"] | {"ignore_merges": True, "merges": raw["model"]["merges"][:200]}
    message = refusal(tmp_path, model=without)
    assert message.startswith(
        "tokenizer.json splits text as llama.cpp's gpt-4o does, but its merges make only "
    )
    assert message.endswith(
        " % of its tokens, so that llama.cpp would find others\n"
        "try: the tokenizer of the original model"
    )
    # Where llama.cpp ignores them as well, a token that no merge makes is found.
    glm = tmp_path / "glm"
    byte_level(glm, "glm4")
    raw = tokenizer_json(glm)
    raw["model"]["vocab"]["Ġgetaway"] = 650
    (glm / "tokenizer.json").write_text(json.dumps(raw))
    file = vocabulary_file(glm, checkpoint_of("qwen3_moe"), 700)
    with LlamaCppModel(file, vocab_only=True) as model:
        text = f"a getaway {NASTY}"
        wanted = Tokenizer.from_file(str(glm / "tokenizer.json")).encode(text).ids
        assert 650 in wanted and model.tokenize(text) == wanted
