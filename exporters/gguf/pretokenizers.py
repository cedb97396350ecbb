"""tokenizer.json's way of splitting text -> llama.cpp's name for it (tokenizer.ggml.pre).

The tokenizer splits a probe text, and the name is that of the known way that gives the same pieces:
how the expression is spelled does not matter. What splits otherwise is refused: a file with the
wrong name loads and then tokenises wrongly in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import takewhile
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf.bpe_merges import rebuilt_ratio
from tenp_edge.exporters.gguf.splitters import SPLITTERS
from tenp_edge.exporters.gguf.tokenizer_json import steps_of
from tenp_edge.runtime.byte_alphabet import BYTE_OF

# Every two ways that differ at all differ here; a test asks for it.
PROBE = (
    "We'll say: it's 'tis don't I'M they'RE HE'D x'y 's'T!?\n\nAnd\n\n\tif (a1 != 12) {\r\n    b = "
    "12345;\r\n}  \n //é\n/* Ünï-cödé */ getElementById HTTPServer iPhone x²½ ٣٤٥٦ १२३४५ ÀÉ straße "
    "Ωμέγα ПРИВЕТмир हिन्दी ภาษาไทย שָׁלוֹם 中文abc中文，漢字。 ひらがなカタカナ 한국어 🦙👍🏽 \u00a0 "
    "\u3000 <a_b>$5.00 don’t 100% a/b\\c http://x.y/z  tail \n \n   .end...   "
)
_NOT_COMPOSED = "e\u0301"


def detect(tokenizer: Mapping[str, Any], bos: bool = True) -> str:
    """llama.cpp's name for the splitter in ``tokenizer`` (tokenizer.json of a byte-level BPE).

    ``bos``: whether the model has such a token. Raises UserError when it splits as none does.
    """
    steps = steps_of(tokenizer)
    composes = _composes(steps)
    pieces = _pieces(steps)
    alike = [splitter for splitter in SPLITTERS if _expected(splitter.expressions) == pieces]
    if not alike:
        raise _other_pieces(pieces)
    ignores = bool(tokenizer["model"].get("ignore_merges", False))
    best = max(
        alike,
        key=lambda splitter: (
            splitter.ignores_merges == ignores,
            splitter.nfc in (None, composes),
            splitter.default_bos == bos,
        ),
    )
    if best.ignores_merges != ignores:
        _check_merges(best.name, tokenizer["model"])
    return best.name


# -- what the tokenizer does -----------------------------------------------------------------------


def _composes(steps: Tokenizer) -> bool:
    """Whether text is made NFC first. Raises UserError when it is changed in any other way."""
    if steps.normalizer is None:
        return False
    changed = next((word for word in PROBE.split(" ") if _normal(steps, word) != word), None)
    if changed is not None:
        raise UserError(
            f"tokenizer.json changes text before it splits it, as llama.cpp does not: {changed!r} "
            f"becomes {_normal(steps, changed)!r}",
            "the tokenizer of the original model",
        )
    return _normal(steps, _NOT_COMPOSED) != _NOT_COMPOSED


def _normal(steps: Tokenizer, text: str) -> str:
    return str(steps.normalizer.normalize_str(text))


def _pieces(steps: Tokenizer) -> tuple[str, ...]:
    """The probe as the tokenizer splits it: in bytes, each written as GPT-2's alphabet has it."""
    if steps.pre_tokenizer is None:
        return (PROBE,)
    return tuple(piece for piece, _ in steps.pre_tokenizer.pre_tokenize_str(PROBE))


@cache
def _expected(expressions: tuple[str, ...]) -> tuple[str, ...]:
    """The probe as llama.cpp splits it with these expressions."""
    splits = [pre_tokenizers.Split(Regex(text), behavior="isolated") for text in expressions]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pieces = pre_tokenizers.Sequence([*splits, to_bytes]).pre_tokenize_str(PROBE)
    return tuple(piece for piece, _ in pieces)


# -- what does not fit -----------------------------------------------------------------------------


def _check_merges(name: str, model: Mapping[str, Any]) -> None:
    """llama.cpp follows the merges where the tokenizer takes a word that is a token for that token,
    or the other way round: the same, if the merges make the tokens. A few exceptions are let pass;
    `validate` finds out whether they matter."""
    ratio = rebuilt_ratio(model)
    if ratio < 0.99:
        raise UserError(
            f"tokenizer.json splits text as llama.cpp's {name} does, but its merges make only "
            f"{100 * ratio:.0f} % of its tokens, so that llama.cpp would find others",
            "the tokenizer of the original model",
        )


def _other_pieces(pieces: Sequence[str]) -> UserError:
    known = {splitter.name: _expected(splitter.expressions) for splitter in SPLITTERS}
    name = max(known, key=lambda name: _common(pieces, known[name]))
    at = _common(pieces, known[name])
    piece, expected = (shown[at] if at < len(shown) else "" for shown in (pieces, known[name]))
    return UserError(
        "tokenizer.json splits text in a way that llama.cpp is not known to have: "
        f"{_text(piece)!r} is a piece, where {name}, which comes nearest, has {_text(expected)!r}",
        f"the tokenizer of the original model; known: {', '.join(sorted(known))}, sentencepiece",
    )


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    """How many pieces they begin with alike."""
    return sum(
        1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False))
    )


def _text(piece: str) -> str:
    """A piece of bytes as text again; one that is no bytes as it is."""
    if any(character not in BYTE_OF for character in piece):
        return piece[:40]
    return bytes(BYTE_OF[character] for character in piece).decode(errors="replace")[:40]
