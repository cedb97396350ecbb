"""Whose places of the cache are whose: extents that grow, move and never overlap."""

from __future__ import annotations

import random

from tenp_edge.runtime.ggml.extents import Extent, Extents, Move


def test_a_single_sequence_has_all_of_it() -> None:
    extents = Extents(512, 1)
    assert extents[0] == Extent(0, 512, 0)
    assert extents.fit({0: 512}) == []
    extents.hold(0, 0)
    assert extents[0].size == 512
    assert extents.fit({0: 513}) is None


def test_what_is_free_is_divided_among_those_that_grow() -> None:
    extents = Extents(2048, 2)
    assert extents.fit({0: 10}) == [] and extents[0] == Extent(0, 2048, 0)
    extents.hold(0, 10)
    # The first keeps what it needs, in whole steps of 256.
    assert extents.fit({1: 300}) == []
    assert (extents[0], extents[1]) == (Extent(0, 256, 10), Extent(256, 1792, 0))
    extents.hold(1, 300)
    assert extents.fit({0: 257}) == [Move(256, 1536, 300)]
    assert (extents[0], extents[1]) == (Extent(0, 1536, 10), Extent(1536, 512, 300))
    assert extents.fit({0: 1537}) is None
    assert extents.fit({0: 1536, 1: 513}) is None
    extents.hold(1, 0)
    assert extents.fit({0: 1537}) == [] and extents[0].size == 2048


def test_small_caches_have_small_steps() -> None:
    extents = Extents(256, 4)
    for number in range(4):
        assert extents.fit({number: 33}) is not None
        extents.hold(number, 33)
    assert [extents[number].size for number in range(4)] == [64, 64, 64, 64]


def test_nothing_is_overwritten_before_it_has_moved() -> None:
    """Against a cache of labels, at random."""
    rng = random.Random(0)
    extents, cache = Extents(1024, 4), [0] * 1024
    held: dict[int, list[int]] = {number: [] for number in range(4)}
    moved = 0
    for _ in range(3000):
        grows = rng.sample(range(4), rng.randint(1, 4))
        if rng.random() < 0.1:
            held[grows[0]] = held[grows[0]][: rng.randint(0, 40)]
        for number, labels in held.items():
            extents.hold(number, len(labels))
        moves = extents.fit({number: len(held[number]) + 7 for number in grows})
        if moves is None:
            held[grows[0]] = []
            continue
        for move in moves:
            moved += 1
            cache[move.target : move.target + move.count] = cache[
                move.source : move.source + move.count
            ]
        for number in grows:
            new = [rng.random() for _ in range(7)]  # type: ignore[misc]
            start = extents[number].start + len(held[number])
            cache[start : start + 7] = new  # type: ignore[assignment]
            held[number] += new  # type: ignore[arg-type]
        for number, labels in held.items():
            start = extents[number].start
            assert cache[start : start + len(labels)] == labels
    assert moved > 50
