"""The vocabulary of a GGUF file, checked before llama.cpp reads it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

import numpy as np

from tenp_edge.errors import UserError, shown
from tenp_edge.runtime.gguf.header import Header, Texts

_NO_VOCABULARY = ("none", "no_vocab")
_BYTE_LEVEL, _SENTENCEPIECE, _GEMMA = "gpt2", "llama", "gemma4"
# Ways to split text under which a file without a BOS token has none; else llama.cpp takes token 11.
_NO_DEFAULT_BOS = ("glm4", "glm5", "chatglm-bpe")
_BYTE_TYPE = 6
_BYTE_TOKEN = re.compile(rb"<0x[0-9A-Fa-f]{2}>")
# Where a file does not say which its special tokens are, llama.cpp takes numbers up to 11.
_FEWEST_TOKENS = 16


def check_vocabulary(header: Header) -> None:
    """Raise UserError where llama.cpp would abort the process, or read beyond an array, instead of
    refusing: repeated tokens, lists of different lengths, bytes that have no token, and kinds of
    tokenizers that we never write."""
    fields = header.fields
    tokens, kind = fields.get("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.model")
    if kind in _NO_VOCABULARY and tokens is None:
        return
    if kind not in (_BYTE_LEVEL, _SENTENCEPIECE, _GEMMA):
        known = f"{_BYTE_LEVEL}, {_SENTENCEPIECE} and {_GEMMA} are known"
        raise _broken(header, f"tokenizer.ggml.model is {shown(repr(kind))}; {known}")
    if not isinstance(tokens, Texts) or not tokens.count:
        raise _broken(header, "it has no tokens")
    # llama.cpp cuts a token at a zero byte and gives an empty one a name of its own.
    cut = (text.split(b"\0", 1)[0] for text in tokens.values())
    texts = {text or b"[EMPTY_%d]" % number for number, text in enumerate(cut)}
    if len(texts) != tokens.count:
        raise _broken(header, f"{tokens.count - len(texts)} of {tokens.count} tokens are repeated")
    if tokens.count < _FEWEST_TOKENS:
        raise _broken(header, f"it has {tokens.count} tokens, fewer than {_FEWEST_TOKENS}")
    if not isinstance(fields.get("tokenizer.ggml.merges"), Texts | None):
        raise _broken(header, "tokenizer.ggml.merges is not a list of texts")
    _check_numbers(header, tokens.count)
    _check_special(header, kind == _GEMMA, tokens.count)
    if kind != _BYTE_LEVEL:
        _check_bytes(header, texts, list(tokens.values()))


def _check_numbers(header: Header, count: int) -> None:
    """Scores and types: one for every token, in the type that llama.cpp reads."""
    for key, kind in (("scores", np.floating), ("token_type", np.integer)):
        values = header.fields.get(f"tokenizer.ggml.{key}")
        if values is None:
            continue
        fits = isinstance(values, np.ndarray) and np.issubdtype(values.dtype, kind)
        if not fits or len(values) != count or values.dtype.itemsize != 4:  # type: ignore[arg-type, union-attr]
            raise _broken(header, f"tokenizer.ggml.{key} is not a list of {count} numbers")


def _check_special(header: Header, gemma: bool, count: int) -> None:
    """The tokens that every text begins or ends with are there. Gemma's always begins with one."""
    fields = header.fields
    no_bos = fields.get("tokenizer.ggml.pre") in _NO_DEFAULT_BOS
    for key in ("bos", "eos") if gemma else ("bos",) if no_bos else ():
        number = fields.get(f"tokenizer.ggml.{key}_token_id")
        named = type(number) is int and 0 <= number < count
        added = (gemma and key == "bos") or bool(fields.get(f"tokenizer.ggml.add_{key}_token"))
        if added and not named:
            raise _broken(
                header, f"every text gets the {key.upper()} token, which it does not name"
            )


def _check_bytes(header: Header, texts: Collection[bytes], ordered: Sequence[bytes]) -> None:
    """What no token spells is written byte by byte: each needs a token, and those of the byte type
    must say which they are."""
    for byte in range(256):
        if b"<0x%02X>" % byte not in texts and bytes([byte]) not in texts:
            raise _broken(header, f"it has no token for the byte 0x{byte:02X}")
    types = header.fields.get("tokenizer.ggml.token_type")
    assert types is None or isinstance(types, np.ndarray)
    for token in [] if types is None else np.flatnonzero(types == _BYTE_TYPE).tolist():
        if not _BYTE_TOKEN.fullmatch(ordered[token]):
            raise _broken(header, f"token {token} is a byte, but does not say which")


def vocabulary_size(header: Header) -> int:
    """How many tokens the file lists."""
    tokens = header.fields.get("tokenizer.ggml.tokens")
    return tokens.count if isinstance(tokens, Texts) else 0


def _broken(header: Header, why: str) -> UserError:
    return UserError(f"the vocabulary of {header.file} is broken: {why}", "export it again")
