"""Text to tokens and back: what every tokenizer offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property


class Vocabulary(ABC):
    """A tokenizer with its special tokens and its chat template."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many tokens there are."""

    @property
    @abstractmethod
    def bos(self) -> int | None:
        """The begin-of-sequence token, if there is one."""

    @property
    @abstractmethod
    def eos(self) -> int | None:
        """The end-of-sequence token, if there is one."""

    @property
    @abstractmethod
    def chat_template(self) -> str | None:
        """The Jinja template, None when there is none."""

    @abstractmethod
    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of ``text``; ``add_special`` adds what the model's files say (a BOS, usually);
        ``parse_special`` reads the text of a control token as that token."""

    @abstractmethod
    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes of one token, which may end in the middle of a character; control tokens have
        none unless ``special``."""

    @abstractmethod
    def ends(self, token: int) -> bool:
        """Whether ``token`` ends a generation (end of text, of turn, ...)."""

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """Every token that ends a generation."""
        return tuple(token for token in range(self.size) if self.ends(token))

    def detokenize(self, tokens: Sequence[int], *, special: bool = True) -> str:
        """Text of ``tokens``, piece by piece (llama_detokenize "cleans up" spaces for some)."""
        return b"".join(self.piece(token, special) for token in tokens).decode(errors="replace")
