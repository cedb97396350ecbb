"""The tokenizer's files -> the ``tokenizer.*`` fields.

The kind of tokenizer comes from the files, never from the family. The files are read as plain JSON
(no transformers), once per checkpoint: the encoded fields are megabytes, and a planner asks for
their size dozens of times.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tenp_edge.disk import read_json
from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf import pieces_json, pretokenizers, sentencepiece, special_tokens
from tenp_edge.exporters.gguf.bpe_merges import tokens_by_id
from tenp_edge.exporters.gguf.fields import Field, boolean, f32s, i32s, text, texts, u32
from tenp_edge.exporters.gguf.sentencepiece import CONTROL, NORMAL, UNUSED, USER_DEFINED
from tenp_edge.exporters.gguf.tokenizer_json import read_added, read_tokenizer
from tenp_edge.models import ModelConfig
from tenp_edge.runtime import tiktoken
from tenp_edge.runtime.directory_vocabulary import is_gemma

_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tiktoken.model",
    "tokenizer_config.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
)
# Control tokens that stay in the text: llama.cpp reads Gemma's answers by them.
_RENDERED = frozenset(
    [
        "<|channel>",
        "<channel|>",
        "<|tool_call>",
        "<tool_call|>",
        "<|tool_response>",
        "<tool_response|>",
        '<|"|>',
    ]
)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, with what llama.cpp's tokenizer ``model`` needs beside them."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    add_space_prefix: bool | None = None
    remove_extra_whitespaces: bool | None = None


def tokenizer_fields(directory: Path, config: ModelConfig) -> tuple[Field, ...]:
    """The fields of the tokenizer in ``directory``, padded to the model's vocabulary.

    Raises UserError when there is no tokenizer, or none that llama.cpp has.
    """
    files = [*(directory / name for name in _FILES), *sorted(directory.glob(tiktoken.CODE))]
    stamps = tuple(
        (file.name, stat.st_mtime_ns, stat.st_size) if (stat := _stat(file)) else None
        for file in files
    )
    return _read(directory, config.vocab_size, stamps)


def _stat(file: Path) -> Any:
    return file.stat() if file.is_file() else None


@lru_cache(maxsize=4)
def _read(directory: Path, vocab_size: int, stamps: tuple[object, ...]) -> tuple[Field, ...]:
    del stamps  # part of the key only: a changed file is read again
    settings = _optional(directory / "tokenizer_config.json")
    tokenizer = read_tokenizer(directory)
    vocabulary = _resized(_vocabulary(directory, tokenizer, settings), vocab_size)
    _check_bytes(vocabulary)
    special = special_tokens.special_ids(directory, settings, vocabulary.tokens)
    if vocabulary.model == "gpt2":
        vocabulary = replace(vocabulary, pre=pretokenizers.detect(tokenizer, bos="bos" in special))
    fields = _vocabulary_fields(vocabulary)
    fields += [(f"tokenizer.ggml.{key}_token_id", u32(value)) for key, value in special.items()]
    for key in ("bos", "eos"):
        fields.append(
            (
                f"tokenizer.ggml.add_{key}_token",
                boolean(special_tokens.adds(key, settings, tokenizer, special)),
            )
        )
    template = special_tokens.chat_template(directory, settings)
    return (*fields, ("tokenizer.chat_template", text(template))) if template else tuple(fields)


def _optional(file: Path) -> Mapping[str, Any]:
    return read_json(file) if file.is_file() else {}


# -- vocabulary ------------------------------------------------------------------------------------


def _vocabulary(
    directory: Path, tokenizer: Mapping[str, Any], settings: Mapping[str, Any]
) -> Vocabulary:
    model_file = directory / "tokenizer.model"
    if tokenizer and not pieces_json.is_sentencepiece(tokenizer):
        return _byte_level(tokenizer)
    if model_file.is_file():
        pieces = sentencepiece.read_model(model_file)
    elif tokenizer and is_gemma(settings):
        return _gemma(tokenizer)
    elif tokenizer:
        pieces_json.check_merges(tokenizer)
        pieces = _checked_pieces(tokenizer)
    else:
        raise UserError(
            f"{directory} has no tokenizer.json, tokenizer.model or tiktoken.model for a GGUF",
            "download the tokenizer files of the model",
        )
    added = read_added(directory / "tokenizer_config.json")
    vocabulary = Vocabulary(
        model="llama",
        pre="default",
        tokens=pieces.tokens,
        types=pieces.types,
        scores=pieces.scores,
        add_space_prefix=_space_prefix(pieces, tokenizer, settings),
        remove_extra_whitespaces=pieces.remove_extra_whitespaces,
    )
    return _with_added(vocabulary, tokenizer or {"added_tokens": added})


def _space_prefix(
    pieces: sentencepiece.Pieces, tokenizer: Mapping[str, Any], settings: Mapping[str, Any]
) -> bool:
    """Whether a space is put in front of a text: transformers does what tokenizer.json says."""
    if tokenizer:
        return pieces_json.space_prefix(tokenizer)
    stated = settings.get("add_prefix_space")
    return stated if isinstance(stated, bool) else pieces.add_space_prefix


def _gemma(tokenizer: Mapping[str, Any]) -> Vocabulary:
    """Pieces as sentencepiece writes them, joined in the order of the merges like byte-level ones:
    what llama.cpp calls gemma4. It needs no scores, and always begins with the BOS token."""
    pieces = _checked_pieces(tokenizer)
    return _with_added(
        Vocabulary(
            model="gemma4",
            pre="gemma4",
            tokens=pieces.tokens,
            types=pieces.types,
            merges=_merges(tokenizer["model"]),
            add_space_prefix=False,
        ),
        tokenizer,
    )


def _checked_pieces(tokenizer: Mapping[str, Any]) -> sentencepiece.Pieces:
    pieces_json.check_pieces(tokenizer)
    return pieces_json.from_json(tokenizer)


def _merges(model: Mapping[str, Any]) -> list[str]:
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]


def _byte_level(tokenizer: Mapping[str, Any]) -> Vocabulary:
    model = tokenizer.get("model") or {}
    if model.get("type") != "BPE":
        raise UserError(
            f"tokenizer.json holds a {model.get('type')} model, GGUF needs BPE or sentencepiece",
            "the tokenizer of the original model",
        )
    tokens = tokens_by_id(model["vocab"])
    types = [NORMAL if token else UNUSED for token in tokens]
    return _with_added(Vocabulary("gpt2", "", tokens, types, merges=_merges(model)), tokenizer)


def _with_added(vocabulary: Vocabulary, tokenizer: Mapping[str, Any]) -> Vocabulary:
    """Added tokens take their id's place: special ones CONTROL, others USER_DEFINED."""
    tokens, types = list(vocabulary.tokens), list(vocabulary.types)
    scores = None if vocabulary.scores is None else list(vocabulary.scores)
    for added in tokenizer.get("added_tokens") or []:
        missing = added["id"] + 1 - len(tokens)
        tokens += [""] * missing
        types += [UNUSED] * missing
        if scores is not None:
            scores += [-1e6] * missing
        number = added["id"]
        tokens[number] = added["content"]
        if types[number] in (NORMAL, UNUSED):
            hidden = added["special"] and added["content"] not in _RENDERED
            types[number] = CONTROL if hidden else USER_DEFINED
    return replace(vocabulary, tokens=tokens, types=types, scores=scores)


def _resized(vocabulary: Vocabulary, size: int) -> Vocabulary:
    """One token per row of the embeddings: gaps and the tail are named [PADi] and unused."""
    tokens = list(vocabulary.tokens)
    if len(tokens) > size:
        raise UserError(
            f"the tokenizer has {len(tokens)} tokens, the model's vocab_size is {size}",
            "check that the tokenizer belongs to this model",
        )
    missing = size - len(tokens)
    tokens += [""] * missing
    return replace(
        vocabulary,
        tokens=[token or f"[PAD{number}]" for number, token in enumerate(tokens)],
        types=vocabulary.types + [UNUSED] * missing,
        scores=None if vocabulary.scores is None else vocabulary.scores + [-1e6] * missing,
    )


def _check_bytes(vocabulary: Vocabulary) -> None:
    """llama.cpp writes what no piece spells byte by byte. Where it cannot, it leaves that out
    (gemma4) or ends the process (llama)."""
    if vocabulary.model == "gpt2":
        return
    known = set(vocabulary.tokens)
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in known]
    if missing:
        raise UserError(
            f"the tokenizer has no piece for {len(missing)} of 256 bytes, which llama.cpp needs",
            "a tokenizer.model with byte fallback",
        )


def _vocabulary_fields(vocabulary: Vocabulary) -> list[Field]:
    fields = [
        ("tokenizer.ggml.model", text(vocabulary.model)),
        ("tokenizer.ggml.pre", text(vocabulary.pre)),
        ("tokenizer.ggml.tokens", texts(vocabulary.tokens)),
        ("tokenizer.ggml.token_type", i32s(vocabulary.types)),
    ]
    if vocabulary.scores is not None:
        fields.append(("tokenizer.ggml.scores", f32s(vocabulary.scores)))
    if vocabulary.merges:
        fields.append(("tokenizer.ggml.merges", texts(vocabulary.merges)))
    for key in ("add_space_prefix", "remove_extra_whitespaces"):
        value = getattr(vocabulary, key)
        if value is not None:
            fields.append((f"tokenizer.ggml.{key}", boolean(value)))
    return fields
