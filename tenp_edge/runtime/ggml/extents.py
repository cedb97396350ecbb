"""Which places of the KV cache belong to which sequence: each has one contiguous extent.

    | sequence 2 . . | sequence 0 . . . . . | sequence 1 . |            free            |

The cache is as large as one sequence needs, and several share it. Attention reads an extent as it
would read a cache of its own, so a sequence's numbers do not depend on who else is there. Whoever
outgrows an extent has the extents laid out again: in the same order, with what is free divided
among those that grow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tenp_edge.runtime.memory.footprint import CONTEXT_STEP

# Extents are whole steps of places: so that few tokens move one, and as a view of a cache of one
# sequence is. Fewer where sequences would have less than two steps each.
_LEAST_STEP = 32


@dataclass(frozen=True)
class Extent:
    """Places ``start``.. of the cache, ``size`` of them; ``held`` hold tokens."""

    start: int
    size: int
    held: int


@dataclass(frozen=True)
class Move:
    """``count`` places from ``source`` on go to ``target`` and those behind it."""

    source: int
    target: int
    count: int


class Extents:
    """The extents of sequences 0.. in a cache of ``places``. A single one has all of them."""

    def __init__(self, places: int, sequences: int) -> None:
        self._places, self._step = places, CONTEXT_STEP
        while self._step > _LEAST_STEP and places < 2 * self._step * sequences:
            self._step //= 2
        self._extents = [Extent(0, 0, 0)] * sequences
        if sequences == 1:
            self._extents = [Extent(0, places, 0)]

    def __getitem__(self, sequence: int) -> Extent:
        return self._extents[sequence]

    def hold(self, sequence: int, held: int) -> None:
        """``sequence`` holds so many tokens now; of none, it needs no extent."""
        extent = self._extents[sequence]
        size = extent.size if held or len(self._extents) == 1 else 0
        self._extents[sequence] = Extent(extent.start, size, held)

    def fit(self, sizes: Mapping[int, int]) -> list[Move] | None:
        """Give every sequence in ``sizes`` an extent of at least so many places: the moves that
        this takes, in an order in which none overwrites what is still to move. None where the
        others hold too much."""
        if all(size <= self._extents[number].size for number, size in sizes.items()):
            return []
        needed = [
            self._whole_steps(sizes.get(number, extent.held))
            for number, extent in enumerate(self._extents)
        ]
        free = self._places - sum(needed)
        if free < 0:
            return None
        share = free // len(sizes) // self._step * self._step
        return self._lay_out([n + share * (i in sizes) for i, n in enumerate(needed)])

    def _lay_out(self, sizes: list[int]) -> list[Move]:
        before, start = list(self._extents), 0
        order = sorted(range(len(sizes)), key=lambda i: (not before[i].size, before[i].start))
        for number in order:
            self._extents[number] = Extent(start, sizes[number], before[number].held)
            start += sizes[number]
        moves = [
            Move(before[i].start, self._extents[i].start, before[i].held)
            for i in order
            if before[i].held and before[i].start != self._extents[i].start
        ]
        left = [move for move in moves if move.target < move.source]
        right = [move for move in moves if move.target > move.source]
        return left + right[::-1]

    def _whole_steps(self, count: int) -> int:
        return -(-count // self._step) * self._step
