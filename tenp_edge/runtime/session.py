"""What every runtime offers: text to tokens, tokens to logits, one sequence that grows."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import takewhile
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from tenp_edge.errors import UserError
from tenp_edge.runtime.memory.footprint import MOST_THREADS
from tenp_edge.runtime.vocabulary import Vocabulary

Logits = npt.NDArray[np.float32]
DEFAULT_CONTEXT = 2048
_MOST_CONTEXT = 2**24  # beyond every model


def thread_count(threads: int | None) -> int:
    """``threads``, or one for every core. Raises UserError for a number that nothing can run."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UserError(
            f"--threads is {threads}",
            f"--threads of 1 to {MOST_THREADS}; this machine has {os.cpu_count() or 1} cores",
        )
    return threads or os.cpu_count() or 1


def check_context(context: int) -> None:
    """Raise UserError for a context that nothing can hold, before it is allocated."""
    if context < 1:
        raise UserError(f"--context is {context}", "--context of 1 or more")
    if context > _MOST_CONTEXT:
        raise UserError(f"--context is {context}", f"--context of at most {_MOST_CONTEXT}")


class Session(ABC):
    """A loaded model with one sequence in its KV cache. Close it, or use it in a ``with``.

    ``context``: how many tokens the cache holds; ``batch_tokens``: how many are evaluated at once.
    ``runtime`` names who computes, ``kv_type`` what the cache is kept in.
    """

    runtime: str
    kv_type: str
    # How many tokens the model knows; None where nobody said.
    trained_context: int | None = None
    # What the model is called; None where nobody said.
    title: str | None = None

    def __init__(self, vocabulary: Vocabulary, context: int, batch_tokens: int) -> None:
        self.vocabulary = vocabulary
        self.context, self.batch_tokens = context, batch_tokens
        self._tokens: list[int] = []
        self._under_way = False

    @property
    def position(self) -> int:
        """Tokens in the cache."""
        return len(self._tokens)

    @property
    def _settled(self) -> int | None:
        """`position`, None after an evaluation that was interrupted: a state, which cannot be cut
        back, may be beyond it."""
        return None if self._under_way else self.position

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Length of a row of logits."""

    @abstractmethod
    def _run(self, tokens: Sequence[int], position: int, all_logits: bool) -> Logits:
        """Evaluate at most ``batch_tokens``: logits of the last (1, vocab) or of all of them.

        The result may be overwritten by the next call.
        """

    @abstractmethod
    def _forget(self, keep: int) -> None:
        """Make the cache forget everything from position ``keep`` on."""

    def _nearest(self, keep: int) -> int:
        """The last position up to ``keep`` that the cache can go back to: layers of a window
        overwrite what is older, layers that carry a state hold few of those that it went through.
        """
        return keep

    def _at_once(self) -> int:
        """How many tokens to evaluate at once, from here, where `evaluate` has just come to."""
        return self.batch_tokens

    @abstractmethod
    def close(self) -> None:
        """Free the model."""

    # -- evaluation ----------------------------------------------------------------------------

    def logits(self, tokens: Sequence[int], first_position: int = 0) -> Logits:
        """Logits of positions ``first_position``.. of a fresh sequence, [n, vocab] float32."""
        self.reset()
        self._check(tokens)
        rows = np.empty((max(0, len(tokens) - first_position), self.vocab_size), dtype=np.float32)
        self._under_way = True
        for start in range(0, len(tokens), self.batch_tokens):
            batch = tokens[start : start + self.batch_tokens]
            stop = start + len(batch)
            if stop <= first_position:
                self._run(batch, start, False)
                continue
            first = max(start, first_position)
            result = self._run(batch, start, first < stop - 1)
            rows[first - first_position : stop - first_position] = result[first - stop :]
        self._tokens = list(tokens)
        self._under_way = False
        return rows

    def evaluate(self, tokens: Sequence[int]) -> Logits:
        """Append ``tokens`` to the sequence; logits after the last of them, [vocab] float32."""
        self._check(tokens)
        result = np.empty((1, 0), dtype=np.float32)
        start = 0
        self._under_way = True
        while start < len(tokens):
            batch = tokens[start : start + self._at_once()]
            result = self._run(batch, self.position, False)
            self._tokens += batch
            start += len(batch)
        self._under_way = False
        last: Logits = result[-1].copy()
        return last

    def decode(self, token: int) -> Logits:
        """`evaluate` of one token."""
        return self.evaluate([token])

    def reset(self, keep: int = 0) -> None:
        """Go back to the first ``keep`` tokens of the sequence; what the cache has lost of them is
        evaluated again."""
        assert 0 <= keep <= self.position
        reached = self._nearest(keep)
        lost = self._tokens[reached:keep]
        self._forget(reached)
        del self._tokens[reached:]
        self._under_way = False
        if lost:
            self.evaluate(lost)

    def prompt(self, tokens: Sequence[int]) -> Logits:
        """Make ``tokens`` the whole sequence, keeping what the cache shares with it; logits after
        the last of them, [vocab] float32."""
        return self.evaluate(tokens[self.keep_shared(tokens) :])

    def keep_shared(self, tokens: Sequence[int]) -> int:
        """Go back to what the cache shares with ``tokens``, without the last of them, whose logits
        are still to come; how many tokens that is: fewer where it cannot go back so far."""
        kept = self._nearest(self._shared(tokens))
        self.reset(kept)
        return kept

    def _shared(self, tokens: Sequence[int]) -> int:
        """How many tokens the sequence and ``tokens``, without the last of them, begin with."""
        pairs = zip(self._tokens, tokens[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _check(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise UserError("there are no tokens to evaluate", "a prompt that is not empty")
        if self.position + len(tokens) > self.context:
            raise UserError(
                f"{self.position + len(tokens)} tokens do not fit into a context of {self.context}",
                "a larger --context or a shorter prompt",
            )
        low, high = min(tokens), max(tokens)
        if low < 0 or high >= self.vocab_size:
            wrong = low if low < 0 else high
            raise UserError(f"token {wrong} is not in the vocabulary of {self.vocab_size}")

    # -- text ----------------------------------------------------------------------------------

    def tokenize(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of ``text``; ``add_special`` adds what the file says (a BOS, usually).

        Raises UserError for half a surrogate pair, which no text file can hold.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"character {error.start + 1} of the text is not Unicode", "text in UTF-8"
            ) from None
        return self.vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int], *, special: bool = True) -> str:
        """Text of ``tokens``; ``special`` shows control tokens."""
        return self.vocabulary.detokenize(tokens, special=special)

    # -- lifetime ------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
