"""The sequences of a session: what each has in the cache, and what is evaluated of it at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile


@dataclass(eq=False)
class Slot:
    """One sequence of tokens in a session's cache.

    ``under_way``: an evaluation was begun and did not end; a state, which cannot be cut back, may
    be beyond the tokens.
    """

    number: int
    tokens: list[int] = field(default_factory=list)
    under_way: bool = False

    @property
    def position(self) -> int:
        """Tokens in the cache."""
        return len(self.tokens)

    @property
    def settled(self) -> int | None:
        """`position`, None after an evaluation that was interrupted."""
        return None if self.under_way else self.position

    def shared(self, tokens: Sequence[int]) -> int:
        """How many tokens this and ``tokens``, without the last of them, begin with: its logits are
        still to come."""
        pairs = zip(self.tokens, tokens[:-1], strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@dataclass(frozen=True)
class Part:
    """``tokens``, which follow those of ``slot``: what one evaluation appends to it."""

    slot: Slot
    tokens: Sequence[int]
