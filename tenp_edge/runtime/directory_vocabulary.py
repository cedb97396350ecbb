"""The tokenizer and chat template of a model directory, without transformers.

tokenizer.json is read by the ``tokenizers`` package, as is tiktoken.model once it is converted; a
lone tokenizer.model by ``sentencepiece``.
Special tokens come from tokenizer_config.json, config.json and generation_config.json.
"""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tenp_edge.errors import UserError
from tenp_edge.runtime.byte_alphabet import BYTE_OF
from tenp_edge.runtime.tiktoken import RANKS_NAME, is_tiktoken, tokenizer_json
from tenp_edge.runtime.vocabulary import Vocabulary

if TYPE_CHECKING:  # Loaded by the vocabularies that need them: GGUF files bring their own.
    from tokenizers import Tokenizer

_TOKENIZER_JSON, _TOKENIZER_MODEL = "tokenizer.json", "tokenizer.model"
_AGAIN = "export it again, or copy the model's tokenizer files there"
_MAX_TEXT_BYTES = 64 * 2**20
_SHOWN = 200
_MOST_TOKENS = 2**31
Made = TypeVar("Made")
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"  # how sentencepiece writes a space


def open_vocabulary(directory: Path) -> Vocabulary:
    """The tokenizer in ``directory``. Raises UserError when there is none, or a broken one."""
    if is_tiktoken(directory):
        return JsonVocabulary(directory, json.dumps(tokenizer_json(directory)))
    for name, kind in ((_TOKENIZER_JSON, JsonVocabulary), (_TOKENIZER_MODEL, PieceVocabulary)):
        if (directory / name).is_file():
            return kind(directory)
    raise UserError(
        f"{directory} has no tokenizer: no {_TOKENIZER_JSON}, {_TOKENIZER_MODEL} or {RANKS_NAME}",
        _AGAIN,
    )


def read_settings(file: Path) -> Mapping[str, Any]:
    """The JSON object in ``file``; an empty one when there is no such file."""
    if not file.is_file():
        return {}
    try:
        settings = json.loads(_text_of(file))
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}", "export it again") from None
    except RecursionError:
        raise UserError(f"{file} is not JSON: it is nested too deep", "export it again") from None
    if not isinstance(settings, dict):
        raise UserError(f"{file} is not a JSON object", "export it again")
    return settings


def flat_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json with the part about the text model at top level: a wrapper of one numbers the
    special tokens there."""
    inner = config.get("text_config")
    return {**inner, **config} if isinstance(inner, dict) else config


def is_gemma(settings: Mapping[str, Any]) -> bool:
    """Whether tokenizer_config.json names Gemma's tokenizer. Its models need the BOS token in front
    of any text, which the files of those for chat leave to their chat template."""
    return settings.get("tokenizer_class") in ("GemmaTokenizer", "GemmaTokenizerFast")


def begins_alone(settings: Mapping[str, Any]) -> bool:
    """Whether a lone tokenizer.model puts BOS in front of a text: as its settings say, else as
    Llama's does."""
    stated = settings.get("add_bos_token")
    named = str(settings.get("tokenizer_class") or "LlamaTokenizer")
    return stated if isinstance(stated, bool) else "Llama" in named


def _text_of(file: Path) -> str:
    """A small file's text. Raises UserError for one that is too large, ValueError for one that is
    not UTF-8."""
    if file.stat().st_size > _MAX_TEXT_BYTES:
        raise UserError(f"{file} is larger than {_MAX_TEXT_BYTES >> 20} MiB", "export it again")
    return file.read_text(encoding="utf-8")


def _is_unicode(text: str) -> bool:
    """False for half a surrogate pair, which JSON can spell and no tokenizer has."""
    return all(not "\ud800" <= character <= "\udfff" for character in text)


def _guarded(file: Path, done: str, action: Callable[[], Made]) -> Made:
    """``action`` of the tokenizers package, which raises plain Exceptions, and panics, which are no
    Exceptions. Raises UserError for both."""
    try:
        return action()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        why = " ".join(str(error).split())[:_SHOWN]
        raise UserError(f"{file} cannot be {done}: {why}", _AGAIN) from None


class DirectoryVocabulary(Vocabulary):
    """What both kinds share: the special tokens and the chat template of ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._settings = read_settings(directory / "tokenizer_config.json")
        self._configs = [
            flat_config(read_settings(directory / name))
            for name in ("generation_config.json", "config.json")
        ]

    @abstractmethod
    def id_of(self, text: str) -> int | None:
        """The number of the token that is written ``text``."""

    @cached_property
    def bos(self) -> int | None:
        return next(iter(self._special("bos")), None)

    @cached_property
    def eos(self) -> int | None:
        return next(iter(self._special("eos")), None)

    @cached_property
    def chat_template(self) -> str | None:
        file = self._directory / "chat_template.jinja"
        if file.is_file():
            try:
                return _text_of(file)
            except ValueError:
                raise UserError(f"{file} is not UTF-8", _AGAIN) from None
        template = self._settings.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = [entry for entry in template if isinstance(entry, dict)]
            templates = (entry.get("template") for entry in named if entry.get("name") == "default")
            template = next(templates, None)
        return template if isinstance(template, str) else None

    def ends(self, token: int) -> bool:
        return token in self._ends

    @cached_property
    def _ends(self) -> frozenset[int]:
        return frozenset(self._special("eos"))

    def _special(self, kind: str) -> Iterator[int]:
        """Every number that the files give the ``kind`` token; the tokenizer's own first."""
        named = self._settings.get(f"{kind}_token")
        text = named.get("content") if isinstance(named, dict) else named
        if isinstance(text, str) and _is_unicode(text):
            number = self.id_of(text)
            if number is not None:
                yield number
        for config in self._configs:
            stated = config.get(f"{kind}_token_id")
            for number in stated if isinstance(stated, list) else [stated]:
                if type(number) is int and 0 <= number < _MOST_TOKENS:
                    yield number


class JsonVocabulary(DirectoryVocabulary):
    """tokenizer.json: any model that ``tokenizers`` knows, byte-level or in sentencepiece style.

    ``converted``: what would stand there, where the files are others.
    """

    def __init__(self, directory: Path, converted: str | None = None) -> None:
        from tokenizers import Tokenizer

        super().__init__(directory)
        self._file = file = directory / (_TOKENIZER_JSON if converted is None else RANKS_NAME)

        def load() -> Tokenizer:
            if converted is None:
                return Tokenizer.from_file(str(file))
            return Tokenizer.from_str(converted)

        self._tokenizer = _guarded(file, "read", load)
        self._literal = _guarded(file, "read", load)
        for tokenizer in (self._tokenizer, self._literal):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        # Two of them, since the switch is the tokenizer's and a server tokenises beside a run.
        self._literal.encode_special_tokens = True
        self._added = self._tokenizer.get_added_tokens_decoder()
        self._byte_level = "ByteLevel" in _decoders(self._tokenizer)

    @property
    def size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def id_of(self, text: str) -> int | None:
        token: int | None = self._tokenizer.token_to_id(text)
        return token

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        tokenizer = self._tokenizer if parse_special else self._literal
        tokens = _guarded(
            self._file,
            "used",
            lambda: list(tokenizer.encode(text, add_special_tokens=add_special).ids),
        )
        lacks = add_special and is_gemma(self._settings) and tokens[:1] != [self.bos]
        return [self.bos, *tokens] if lacks and self.bos is not None else tokens

    def piece(self, token: int, special: bool = False) -> bytes:
        added = self._added.get(token)
        if added is not None:
            return added.content.encode() if special or not added.special else b""
        text = self._tokenizer.id_to_token(token)
        if text is None:  # rows of the output matrix beyond the tokenizer's own
            return b""
        if self._byte_level:
            return bytes(BYTE_OF[character] for character in text if character in BYTE_OF)
        return _plain_bytes(text)


def _decoders(tokenizer: Tokenizer) -> set[str]:
    """The kinds of the decoder's parts ("ByteLevel", "ByteFallback", ...)."""
    stated = json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder else {}
    return {part["type"] for part in [stated, *stated.get("decoders", [])] if "type" in part}


def _plain_bytes(text: str) -> bytes:
    """A sentencepiece token: "<0x0A>" is that byte, a low line is a space."""
    match = _BYTE.fullmatch(text)
    return bytes([int(match[1], 16)]) if match else text.replace(_SPACE, " ").encode()


class PieceVocabulary(DirectoryVocabulary):
    """A lone tokenizer.model, with what tokenizer_config.json adds to it."""

    def __init__(self, directory: Path) -> None:
        import sentencepiece

        super().__init__(directory)
        file = directory / _TOKENIZER_MODEL
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        except (OSError, RuntimeError, ValueError):
            raise UserError(f"{file} is not a sentencepiece model", _AGAIN) from None
        stated = self._settings.get("added_tokens_decoder") or {}
        try:
            self._added = {int(number): str(entry["content"]) for number, entry in stated.items()}
        except (AttributeError, KeyError, TypeError, ValueError):
            settings = directory / "tokenizer_config.json"
            raise UserError(f"{settings} is broken: added_tokens_decoder", _AGAIN) from None
        pieces = range(self._model.get_piece_size())
        control = {n: self._model.id_to_piece(n) for n in pieces if self._model.is_control(n)}
        self._special_text = {text: n for n, text in (control | self._added).items()}
        alternatives = sorted(map(re.escape, self._special_text), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(alternatives)})") if alternatives else None

    @property
    def size(self) -> int:
        return max(int(self._model.get_piece_size()), *(n + 1 for n in self._added), 0)

    def id_of(self, text: str) -> int | None:
        if text in self._special_text:
            return self._special_text[text]
        number = int(self._model.piece_to_id(text))
        return None if number == self._model.unk_id() else number

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        parts = self._split.split(text) if parse_special and self._split else [text]
        begins = add_special and begins_alone(self._settings)
        tokens = [self.bos] if begins and self.bos is not None else []
        for part in filter(None, parts):
            number = self._special_text.get(part) if parse_special else None
            tokens += self._model.encode(part) if number is None else [number]
        return tokens

    def piece(self, token: int, special: bool = False) -> bytes:
        if token in self._special_text.values():
            text = self._added.get(token) or str(self._model.id_to_piece(token))
            return text.encode() if special else b""
        if token >= self._model.get_piece_size():
            return b""
        return _plain_bytes(str(self._model.id_to_piece(token)))
