"""A vocabulary of bytes, and of control tokens that a test asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tenp_edge.runtime.vocabulary import Vocabulary


class ByteVocabulary(Vocabulary):
    """Token 0 ends, 1 begins, then a token for every byte, then ``control``."""

    def __init__(self, control: Iterable[str], template: str | None = None) -> None:
        names = [mark for mark in dict.fromkeys(control) if mark.startswith(("<|", "<｜"))]  # noqa: RUF001
        self.control = {name: 258 + number for number, name in enumerate(names)}
        self._template = template
        self._names = dict(zip(self.control.values(), self.control, strict=True))
        longest = sorted(map(re.escape, names), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(longest)})") if names else None

    @property
    def size(self) -> int:
        return 258 + len(self.control)

    @property
    def bos(self) -> int | None:
        return 1

    @property
    def eos(self) -> int | None:
        return 0

    @property
    def chat_template(self) -> str | None:
        return self._template

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        tokens = [1] if add_special else []
        for part in self._split.split(text) if self._split and parse_special else [text]:
            number = self.control.get(part) if parse_special else None
            tokens += [byte + 2 for byte in part.encode()] if number is None else [number]
        return tokens

    def piece(self, token: int, special: bool = False) -> bytes:
        if 2 <= token < 258:
            return bytes([token - 2])
        named = {0: "<end>", 1: "<begin>", **self._names}
        return named[token].encode() if special else b""

    def ends(self, token: int) -> bool:
        return token == 0


def byte_vocabulary(control: Iterable[str] = (), template: str | None = None) -> ByteVocabulary:
    return ByteVocabulary(control, template)
