"""A GGUF file's vocabulary as llama.cpp reads it."""

from __future__ import annotations

import ctypes
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.runtime.llamacpp.native import native
from tenp_edge.runtime.vocabulary import Vocabulary


class LlamaVocabulary(Vocabulary):
    """Text to tokens and back. ``model``: a llama.cpp model, which must outlive this object."""

    def __init__(self, model: Any) -> None:
        self._native = native()
        self._model = model
        self._vocab = self._native.llama_model_get_vocab(model)

    @property
    def size(self) -> int:
        return int(self._native.llama_vocab_n_tokens(self._vocab))

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        raw = text.encode()
        size = len(raw) + 8
        buffer = (ctypes.c_int32 * size)()
        count = self._native.llama_tokenize(
            self._vocab, raw, len(raw), buffer, size, add_special, parse_special
        )
        if count < 0:
            raise UserError(f"llama.cpp cannot tokenise {len(raw)} bytes of text")
        return list(buffer[:count])

    def piece(self, token: int, special: bool = False) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._native.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def ends(self, token: int) -> bool:
        return bool(self._native.llama_vocab_is_eog(self._vocab, token))

    @property
    def bos(self) -> int | None:
        token = int(self._native.llama_vocab_bos(self._vocab))
        return token if token >= 0 else None

    @property
    def eos(self) -> int | None:
        token = int(self._native.llama_vocab_eos(self._vocab))
        return token if token >= 0 else None

    @property
    def chat_template(self) -> str | None:
        template: bytes | None = self._native.llama_model_chat_template(self._model, None)
        return None if template is None else template.decode(errors="replace")
