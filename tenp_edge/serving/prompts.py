"""Prompts as tokens, and the limits on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from tenp_edge.errors import UserError
from tenp_edge.runtime.generation import prompt_tokens
from tenp_edge.runtime.session import Session
from tenp_edge.serving.refusal import RefusalError

# Text that has more bytes per token of the context than any language does is not tokenised first
# to be refused then: a MiB of spaces takes seconds.
_BYTES_PER_TOKEN = 32


class Prompts:
    """Tokens of the prompts of ``session``'s model.

    Tokenising touches the vocabulary alone, which the worker only reads.
    """

    def __init__(self, session: Session) -> None:
        self._session, self._context = session, session.context

    def tokens(self, prompt: str | Sequence[int], field: str = "prompt") -> tuple[int, ...]:
        """The tokens of ``prompt``, in ``field`` of a request. Raises RefusalError."""
        if isinstance(prompt, str):
            prompt = self._tokenized(prompt, field, self._session.tokenize)
        return self._checked(prompt, field)

    def chat_tokens(self, text: str) -> tuple[int, ...]:
        """The tokens of a rendered conversation. Raises RefusalError."""
        tokenize = partial(prompt_tokens, self._session)
        return self._checked(self._tokenized(text, "messages", tokenize), "messages")

    def part_tokens(self, text: str, begins: bool) -> list[int]:
        """The tokens of a text among token numbers, which ``begins`` the prompt or does not.
        Raises RefusalError."""
        tokenize = partial(self._session.tokenize, add_special=begins)
        return self._tokenized(text, "prompt", tokenize)

    def check_size(self, nbytes: int, field: str) -> None:
        """Refuse what cannot fit before it is tokenised."""
        max_bytes = _BYTES_PER_TOKEN * self._context
        if nbytes > max_bytes:
            raise self._too_long(
                f"{nbytes} bytes", f"{max_bytes} bytes ({self._context} tokens)", field
            )

    def check_token(self, token: int, field: str) -> None:
        """Refuse a number that is no token."""
        count = self._session.vocab_size
        if not 0 <= token < count:
            raise RefusalError(
                400, f"token {token} is not in the vocabulary of {count}", "invalid_value", field
            )

    def _tokenized(self, text: str, field: str, tokenize: Callable[[str], list[int]]) -> list[int]:
        self.check_size(size(text), field)
        try:
            return tokenize(text)
        except UserError as error:
            raise RefusalError.of(error, 400, "invalid_value", field) from None

    def _checked(self, tokens: Sequence[int], field: str) -> tuple[int, ...]:
        if not tokens:
            raise RefusalError(400, "the prompt is empty", "invalid_value", field)
        if len(tokens) > self._context:
            raise self._too_long(f"{len(tokens)} tokens", f"{self._context} tokens", field)
        for token in (min(tokens), max(tokens)):
            self.check_token(token, field)
        return tuple(tokens)

    def _too_long(self, length: str, most: str, field: str) -> RefusalError:
        # Clients shorten a conversation where a message has Anthropic's and llama-server's words.
        message = (
            f"the prompt is too long: {length}, which exceeds the available context size of {most}"
        )
        return RefusalError(400, message, "context_length_exceeded", field)


def size(text: str) -> int:
    return len(text.encode(errors="replace"))
