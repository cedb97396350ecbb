"""Byte-level tokenizers that split text in every way that llama.cpp has a name for."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from support.tokenizer_cases import NASTY, write_settings
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.exporters.gguf.fields import header
from tenp_edge.exporters.gguf.metadata import Recipe, model_fields
from tenp_edge.exporters.gguf.tokenizer import tokenizer_fields

# Patterns as the published models' tokenizer.json files spell them.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As tiktoken spells o200k_base, which gpt-oss has.
O200K = "|".join(
    [
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)
TEKKEN = O200K.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace(r"\p{N}{1,3}", r"\p{N}")
# As tokenization_kimi.py spells it.
KIMI_PARTS = [
    r"""[\p{Han}]+""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"""
    r"""[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"""
    r"""[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?""",
    r"""\p{N}{1,3}""",
    r""" ?[^\s\p{L}\p{N}]+[\r\n]*""",
    r"""\s*[\r\n]+""",
    r"""\s+(?!\S)""",
    r"""\s+""",
]
# As Ling spells it: the same words as Qwen2's.
BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
DEEPSEEK_V3 = (
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
    "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"
)
DEEPSEEK_LLM = (
    "[\r\n]",
    "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ"
    "-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛ"
    "Ꜣ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
    "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    "\\s+$",
    "[一-龥ࠀ-一가-\ud7ff]+",
)


@dataclass(frozen=True)
class Style:
    """``steps``: the pre-tokenizer of tokenizer.json. ``bos``: whether the model has one."""

    steps: tuple[Any, ...]
    nfc: bool = False
    ignore_merges: bool = False
    bos: bool = True


def splits(*patterns: str) -> tuple[Any, ...]:
    return tuple(pre_tokenizers.Split(Regex(text), behavior="isolated") for text in patterns)


TO_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_DIGITS = pre_tokenizers.Digits(individual_digits=True)
# llama.cpp's name -> how a model of that name splits text.
STYLES = {
    "qwen2": Style((*splits(QWEN2), TO_BYTES), nfc=True),
    "qwen35": Style((*splits(QWEN35), TO_BYTES), nfc=True),
    "gpt-2": Style((_GPT2,)),
    "olmo": Style((_GPT2,), nfc=True),
    "llama-bpe": Style((*splits(LLAMA3), TO_BYTES), ignore_merges=True),
    "glm4": Style((*splits(LLAMA3), TO_BYTES), ignore_merges=True, bos=False),
    "smaug-bpe": Style((*splits(LLAMA3), TO_BYTES)),
    "chatglm-bpe": Style((*splits(LLAMA3), TO_BYTES), bos=False),
    "gpt-4o": Style((*splits(O200K), TO_BYTES)),
    "tekken": Style((*splits(TEKKEN), TO_BYTES), ignore_merges=True),
    "kimi-k2": Style((*splits("|".join(KIMI_PARTS)), TO_BYTES)),
    "deepseek-llm": Style((*splits(*DEEPSEEK_LLM), _DIGITS, TO_BYTES)),
    "deepseek-v3": Style((*splits(r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", DEEPSEEK_V3), TO_BYTES)),
    "starcoder": Style((_DIGITS, _GPT2)),
}


def byte_level(
    directory: Path, style: str, *, old_merges: bool = False, crossing: str = ""
) -> Tokenizer:
    """A BPE tokenizer of ``style`` trained on the sample itself, saved as tokenizer.json.

    ``crossing``: trained on this text instead, and on its words joined in pairs: a word too many or
    too few then gives other tokens, wherever it is.
    """
    how = STYLES[style]
    splitter = pre_tokenizers.Sequence(list(how.steps))
    tokenizer = Tokenizer(models.BPE(ignore_merges=how.ignore_merges))
    tokenizer.pre_tokenizer = TO_BYTES if crossing else splitter
    tokenizer.decoder = decoders.ByteLevel()
    if how.nfc:
        tokenizer.normalizer = normalizers.NFC()
    sample = words_in_pairs(splitter, crossing) if crossing else [NASTY] * 3 + [__doc__ or ""]
    _train(tokenizer, sample, 20000 if crossing else 640)
    tokenizer.pre_tokenizer = splitter
    tokenizer.add_tokens(["<tool_call>"])
    if style == "olmo":
        # GPT-NeoX's vocabulary adds runs of spaces.
        tokenizer.add_tokens([" " * count for count in range(12, 1, -1)])
    return _saved(tokenizer, directory, how.bos, old_merges)


def words_in_pairs(splitter: Any, text: str) -> list[str]:
    """The words of ``text``, and every two neighbours joined. Digits are not joined: where they are
    split one by one no vocabulary has two of them in one token, and llama.cpp relies on it."""
    spans = [span for _, span in splitter.pre_tokenize_str(text)]
    words = [text[start:end] for start, end in spans]
    single = not any(len(word) > 1 and word.isnumeric() for word in words)
    pairs = (
        left + right
        for left, right in pairwise(words)
        if not (single and left.isnumeric() and right.isnumeric())
    )
    return words * 2 + list(pairs)


def _train(tokenizer: Tokenizer, sample: Iterable[str], size: int) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sample, trainer)


def _saved(tokenizer: Tokenizer, directory: Path, bos: bool, old_merges: bool) -> Tokenizer:
    directory.mkdir(exist_ok=True)
    raw = json.loads(tokenizer.to_str())
    if old_merges:
        raw["model"]["merges"] = [" ".join(merge) for merge in raw["model"]["merges"]]
    (directory / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    settings: dict[str, Any] = {"eos_token": "<|end|>"}
    if bos:
        settings["bos_token"] = {"content": "<|begin|>"}
    write_settings(directory, settings)
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def vocabulary_file(directory: Path, checkpoint: Path, size: int) -> Path:
    """A GGUF file that holds the tokenizer of ``directory`` and no tensors."""
    config = replace(Checkpoint(checkpoint).config, vocab_size=size)
    fields = model_fields(config, "merged", 0, Recipe()) + list(tokenizer_fields(directory, config))
    file = directory / "vocab.gguf"
    file.write_bytes(header(fields, []))
    return file


# -- where llama.cpp splits otherwise than the model's own tokenizer -------------------------------


def without_marks(text: str) -> str:
    """``text`` without combining marks, which some of llama.cpp's expressions take for symbols."""
    return "".join(letter for letter in text if not unicodedata.category(letter).startswith("M"))


def spaced_before_capitals(text: str, ascii_too: bool) -> str:
    """A space where a capital follows a letter that is none, so that no word is split there;
    ``ascii_too``: between two ASCII letters as well."""
    found = text[:1]
    for before, letter in pairwise(text):
        cased = (
            before.isalpha()
            and not before.isupper()
            and unicodedata.category(letter) in ("Lu", "Lt")
        )
        found += " " if cased and (ascii_too or not (before + letter).isascii()) else ""
        found += letter
    return found
