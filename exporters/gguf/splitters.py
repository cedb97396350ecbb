"""llama.cpp's ways of splitting text into words, by the name in the file (tokenizer.ggml.pre).

A way is a list of expressions. Each cuts every piece that the one before it left: its matches
become pieces, and so does what lies between them. The expressions are those of the published
models. llama.cpp rewrites some for std::regex; where the rewritten one cuts otherwise is in
docs/formats/tokenizers.md.
"""

from __future__ import annotations

from dataclasses import dataclass

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_REST_WITH_SLASH = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
# Upper case and lower case, with what has no case on both sides.
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_NO_HAN = r"&&[^\p{Han}]"


def _cased(upper: str, lower: str, after: str) -> str:
    """Words that end where lower case turns to upper case: get|Element, HTTPServer as one."""
    return f"{_BEFORE}[{upper}]*[{lower}]+{after}|{_BEFORE}[{upper}]+[{lower}]*{after}"


QWEN2 = rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}|{_REST}"
LLAMA3 = rf"{_CONTRACTIONS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
QWEN35 = (
    rf"{_CONTRACTIONS}|{_BEFORE}[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}"
)
GPT4O = rf"{_cased(_UPPER, _LOWER, _CONTRACTIONS + '?')}|\p{{N}}{{1,3}}|{_REST_WITH_SLASH}"
TEKKEN = rf"{_cased(_UPPER, _LOWER, '')}|\p{{N}}|{_REST_WITH_SLASH}"
KIMI_K2 = (
    rf"[\p{{Han}}]+|{_cased(_UPPER + _NO_HAN, _LOWER + _NO_HAN, _CONTRACTIONS + '?')}"
    rf"|\p{{N}}{{1,3}}|{_REST}"
)
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
DEEPSEEK_LLM = (
    r"[\r\n]",
    # Every cased script's letters, which fill half a page.
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕ"
    "ἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹ"
    "ℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
    "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+",
    r"\s+$",
    "[一-龥\u0800-一가-\ud7ff]+",
    _DIGIT,
)
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
)


@dataclass(frozen=True)
class Splitter:
    """A name of llama.cpp's.

    ``ignores_merges``: a word that is a token is that token, whatever the merges make of it.
    ``default_bos``: where the file names no BOS, llama.cpp still takes token 11 for it. ``nfc``: as
    the model's own tokenizer does, text is made NFC first (llama.cpp does not; None: either).
    """

    name: str
    expressions: tuple[str, ...]
    ignores_merges: bool = False
    default_bos: bool = True
    nfc: bool | None = None


SPLITTERS = (
    Splitter("qwen2", (QWEN2,)),
    Splitter("qwen35", (QWEN35,)),
    Splitter("llama-bpe", (LLAMA3,), ignores_merges=True),
    Splitter("glm4", (LLAMA3,), ignores_merges=True, default_bos=False),
    Splitter("smaug-bpe", (LLAMA3,)),
    Splitter("chatglm-bpe", (LLAMA3,), default_bos=False),
    Splitter("gpt-4o", (GPT4O,)),
    Splitter("tekken", (TEKKEN,), ignores_merges=True),
    Splitter("kimi-k2", (KIMI_K2,)),
    Splitter("deepseek-llm", DEEPSEEK_LLM),
    Splitter("deepseek-v3", DEEPSEEK_V3),
    Splitter("starcoder", (_DIGIT, GPT2)),
    Splitter("gpt-2", (GPT2,), nfc=False),
    Splitter("olmo", (GPT2,), nfc=True),
)
