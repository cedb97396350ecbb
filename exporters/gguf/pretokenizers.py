"""tokenizer.json's way of splitting text -> llama.cpp's name for it (tokenizer.ggml.pre).

llama.cpp has one hard-coded splitter per name, so an unknown one is refused: a file with the wrong
name loads and then tokenises wrongly in silence. The patterns are those of the published models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tenp_edge.errors import UserError

Step = tuple[str, str]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}"
LLAMA3 = rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
DEEPSEEK_V3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
# The letters of deepseek-llm fill half a page; published copies differ in Unicode normalisation.
_DEEPSEEK_LETTERS = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿ"
_BYTES: Step = ("bytes", "")
_GPT2_BYTES: Step = ("bytes", "gpt2 words")

_TABLE: tuple[tuple[str, bool | None, tuple[Step, ...]], ...] = (
    # name, ignore_merges (None: either, it changes nothing there), steps
    ("qwen2", False, (("split", QWEN2), _BYTES)),
    ("llama-bpe", True, (("split", LLAMA3), _BYTES)),
    ("smaug-bpe", False, (("split", LLAMA3), _BYTES)),
    (
        "deepseek-llm",
        False,
        (
            ("split", r"[\r\n]"),
            ("split", _DEEPSEEK_LETTERS),
            ("split", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"),
            ("split", r"\s+$"),
            ("split", "[一-龥ࠀ-一가-\ud7ff]+"),
            ("digits", "single"),
            _BYTES,
        ),
    ),
    (
        "deepseek-v3",
        False,
        (
            ("split", r"\p{N}{1,3}"),
            ("split", "[一-龥\u3040-ゟ゠-ヿ]+"),
            ("split", DEEPSEEK_V3),
            _BYTES,
        ),
    ),
    ("starcoder", False, (("digits", "single"), _GPT2_BYTES)),
    ("gpt-2", False, (_GPT2_BYTES,)),
)


def detect(tokenizer: Mapping[str, Any]) -> str:
    """llama.cpp's name for the splitter in ``tokenizer`` (tokenizer.json of a byte-level BPE).

    Raises UserError when it matches none.
    """
    normalizer = _normalizers(tokenizer.get("normalizer"))
    if not normalizer <= {"NFC"}:
        raise _unknown(f"normalizer {', '.join(sorted(normalizer))}")
    steps = tuple(_steps(tokenizer.get("pre_tokenizer") or {}))
    ignore_merges = bool(tokenizer["model"].get("ignore_merges", False))
    for name, ignores, wanted in _TABLE:
        if ignores == ignore_merges and _same(steps, wanted):
            # OLMo splits as GPT-2 does, after Unicode normalisation.
            return "olmo" if name == "gpt-2" and "NFC" in normalizer else name
    raise _unknown(" + ".join(f"{kind}({what[:60]})" for kind, what in steps) or "none")


def _same(steps: tuple[Step, ...], wanted: tuple[Step, ...]) -> bool:
    return len(steps) == len(wanted) and all(
        kind == kind_wanted
        and (what == pattern or (pattern is _DEEPSEEK_LETTERS and what.startswith(pattern)))
        for (kind, what), (kind_wanted, pattern) in zip(steps, wanted, strict=True)
    )


def _steps(node: Mapping[str, Any]) -> Iterator[Step]:
    kind = node.get("type")
    if kind == "Sequence":
        for child in node["pretokenizers"]:
            yield from _steps(child)
    elif kind == "Split":
        usual = node["behavior"] == "Isolated" and not node.get("invert", False)
        inverted = node["behavior"] == "Removed" and node.get("invert", False)
        pattern = node["pattern"].get("Regex") or str(node["pattern"])
        # "Removed, inverted" keeps the matches alone; these patterns match everything.
        kind = "split" if usual or inverted else f"split {node['behavior']}"
        # Some files escape line ends in the pattern, some hold the characters themselves.
        yield kind, pattern.replace("\r", r"\r").replace("\n", r"\n")
    elif kind == "Digits":
        yield "digits", "single" if node["individual_digits"] else "runs"
    elif kind == "ByteLevel":
        prefix = "prefix space " if node.get("add_prefix_space") else ""
        yield "bytes", prefix + ("gpt2 words" if node.get("use_regex", True) else "")
    elif kind is not None:
        yield str(kind), ""


def _normalizers(node: Mapping[str, Any] | None) -> set[str]:
    if not node:
        return set()
    if node["type"] == "Sequence":
        return set().union(*(_normalizers(child) for child in node["normalizers"]))
    return {str(node["type"])}


def _unknown(what: str) -> UserError:
    known = ", ".join(sorted({name for name, _, _ in _TABLE} | {"olmo"}))
    return UserError(
        f"tokenizer.json splits text in a way that llama.cpp is not known to have: {what}",
        f"the tokenizer of the original model; known: {known}, sentencepiece",
    )
