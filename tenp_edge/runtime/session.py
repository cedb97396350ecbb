"""What every runtime offers: text to tokens, tokens to logits, sequences that grow."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from tenp_edge.errors import UserError
from tenp_edge.runtime.memory.footprint import MOST_THREADS
from tenp_edge.runtime.slots import Part, Slot
from tenp_edge.runtime.vocabulary import Vocabulary
from tenp_edge.threads import usable_threads

Logits = npt.NDArray[np.float32]
DEFAULT_CONTEXT = 2048
_MOST_CONTEXT = 2**24  # beyond every model
# llama.cpp has 256 at most; a graph of ours has some nodes for each.
_MOST_PARALLEL = 64


def thread_count(threads: int | None) -> int:
    """``threads``, or `usable_threads`. Raises UserError for a number that nothing can run."""
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UserError(
            f"--threads is {threads}",
            f"--threads of 1 to {MOST_THREADS}; this machine has {os.cpu_count() or 1} cores",
        )
    return threads or usable_threads()


def check_context(context: int) -> None:
    """Raise UserError for a context that nothing can hold, before it is allocated."""
    if context < 1:
        raise UserError(f"--context is {context}", "--context of 1 or more")
    if context > _MOST_CONTEXT:
        raise UserError(f"--context is {context}", f"--context of at most {_MOST_CONTEXT}")


def check_parallel(parallel: int) -> None:
    """Raise UserError for a number of sequences that nothing can run."""
    if not 1 <= parallel <= _MOST_PARALLEL:
        raise UserError(f"--parallel is {parallel}", f"--parallel of 1 to {_MOST_PARALLEL}")


class Session(ABC):
    """A loaded model and the sequences in its KV cache. Close it, or use it in a ``with``.

    ``context``: how many tokens the cache holds, of all sequences together; ``batch_tokens``: how
    many are evaluated at once. ``slots``: the sequences, one unless the runtime was asked for more;
    methods without a slot mean the first. ``runtime`` names who computes, ``kv_type`` what the
    cache is kept in.
    """

    runtime: str
    kv_type: str
    # How many tokens the model knows; None where nobody said.
    trained_context: int | None = None
    # What the model is called; None where nobody said.
    title: str | None = None

    def __init__(
        self, vocabulary: Vocabulary, context: int, batch_tokens: int, parallel: int = 1
    ) -> None:
        self.vocabulary = vocabulary
        self.context, self.batch_tokens = context, batch_tokens
        self.slots = tuple(Slot(number) for number in range(parallel))

    @property
    def position(self) -> int:
        """Tokens in the cache, of the first sequence."""
        return self.slots[0].position

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Length of a row of logits."""

    @abstractmethod
    def _run(self, parts: Sequence[Part], all_logits: bool) -> Logits:
        """Evaluate at most ``batch_tokens`` behind what their slots hold: logits of the last of
        every part [parts, vocab], or of all tokens of a single one.

        The result may be overwritten by the next call.
        """

    @abstractmethod
    def _forget(self, slot: Slot, keep: int) -> None:
        """Make the cache forget everything from position ``keep`` on."""

    def _nearest(self, slot: Slot, keep: int) -> int:
        """The last position up to ``keep`` that the cache can go back to: layers of a window
        overwrite what is older, layers that carry a state hold few of those that it went through.
        """
        return keep

    @property
    def shared_batch(self) -> int:
        """How many tokens of several sequences are evaluated at once: fewer than of one, so that
        no more memory is needed than what was planned for one."""
        return max(1, self.batch_tokens * 3 // 4)

    def at_once(self, slot: Slot) -> int:
        """How many tokens of ``slot`` to evaluate at once, from where it is."""
        return self.batch_tokens

    def make_room(self, sizes: Mapping[Slot, int]) -> bool:
        """Have room for so many tokens in each of these slots and for what the others hold; False
        where the cache is too small for all of it: forget some."""
        return all(size <= self.context for size in sizes.values())

    def copy_prefix(self, source: Slot, target: Slot, count: int) -> int:
        """Give ``target``, which is empty, what the cache has of the first ``count`` tokens of
        ``source``; how many it got: 0 where the runtime cannot, fewer where `_nearest` says so."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """Free the model."""

    # -- evaluation ----------------------------------------------------------------------------

    def step(self, parts: Sequence[Part], all_logits: bool = False) -> Logits:
        """Append every part's tokens to its slot in one evaluation: `at_once` of each, and of
        several at most `shared_batch` together. Logits after the last of each, [parts, vocab], or
        after all tokens of a single one, [tokens, vocab], which the next call may overwrite.

        Raises UserError where the cache has no room.
        """
        sizes = {part.slot: part.slot.position + len(part.tokens) for part in parts}
        if not self.make_room(sizes):
            raise UserError(
                f"{sum(sizes.values())} tokens do not fit into a context of {self.context}",
                "a larger --context or a shorter prompt",
            )
        return self._advance(parts, all_logits)

    def logits(self, tokens: Sequence[int], first_position: int = 0) -> Logits:
        """Logits of positions ``first_position``.. of a fresh sequence, [n, vocab] float32."""
        slot = self.slots[0]
        self.reset()
        self._check(slot, tokens)
        assert self.make_room({slot: len(tokens)}), "other sequences hold the cache"
        rows = np.empty((max(0, len(tokens) - first_position), self.vocab_size), dtype=np.float32)
        for start in range(0, len(tokens), self.batch_tokens):
            batch = tokens[start : start + self.batch_tokens]
            stop = start + len(batch)
            wanted = stop > first_position
            first = max(start, first_position)
            result = self._advance([Part(slot, batch)], wanted and first < stop - 1)
            if wanted:
                rows[first - first_position : stop - first_position] = result[first - stop :]
        return rows

    def evaluate(self, tokens: Sequence[int], slot: Slot | None = None) -> Logits:
        """Append ``tokens`` to the sequence; logits after the last of them, [vocab] float32."""
        slot = slot or self.slots[0]
        self._check(slot, tokens)
        result = np.empty((1, 0), dtype=np.float32)
        start = 0
        while start < len(tokens):
            batch = tokens[start : start + self.at_once(slot)]
            result = self.step([Part(slot, batch)])
            start += len(batch)
        last: Logits = result[-1].copy()
        return last

    def decode(self, token: int) -> Logits:
        """`evaluate` of one token."""
        return self.evaluate([token])

    def reset(self, keep: int = 0, slot: Slot | None = None) -> None:
        """Go back to the first ``keep`` tokens of the sequence; what the cache has lost of them is
        evaluated again."""
        slot = slot or self.slots[0]
        assert 0 <= keep <= slot.position
        reached = self._nearest(slot, keep)
        lost = slot.tokens[reached:keep]
        self._forget(slot, reached)
        del slot.tokens[reached:]
        slot.under_way = False
        if lost:
            self.evaluate(lost, slot)

    def prompt(self, tokens: Sequence[int]) -> Logits:
        """Make ``tokens`` the whole sequence, keeping what the cache shares with it; logits after
        the last of them, [vocab] float32."""
        return self.evaluate(tokens[self.keep_shared(tokens) :])

    def keep_shared(self, tokens: Sequence[int], slot: Slot | None = None) -> int:
        """Go back to what the cache shares with ``tokens``, without the last of them, whose logits
        are still to come; how many tokens that is: fewer where it cannot go back so far."""
        slot = slot or self.slots[0]
        kept = self._nearest(slot, slot.shared(tokens))
        self.reset(kept, slot)
        return kept

    def _advance(self, parts: Sequence[Part], all_logits: bool) -> Logits:
        """`_run`, and the slots hold the tokens; where it is interrupted, the slots know."""
        for part in parts:
            part.slot.under_way = True
        result = self._run(parts, all_logits)
        for part in parts:
            part.slot.tokens += part.tokens
            part.slot.under_way = False
        return result

    def _check(self, slot: Slot, tokens: Sequence[int]) -> None:
        if not tokens:
            raise UserError("there are no tokens to evaluate", "a prompt that is not empty")
        if slot.position + len(tokens) > self.context:
            raise UserError(
                f"{slot.position + len(tokens)} tokens do not fit into a context of {self.context}",
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
