import random

import pytest

from bisect import bisect_right


class IntervalMap:
    """Maps half-open integer ranges to values; later writes win.

    Stored as a sorted list of boundaries: ``starts[i]`` is where ``values[i]``
    begins, and it lasts until ``starts[i + 1]``. ``None`` marks a gap.
    """

    def __init__(self):
        self._starts = [float("-inf")]
        self._values = [None]

    def __getitem__(self, point):
        return self._values[bisect_right(self._starts, point) - 1]

    def set(self, lo, hi, value):
        if lo >= hi:
            raise ValueError(f"empty range [{lo}, {hi})")
        after = self[hi]
        i = bisect_right(self._starts, lo)
        if self._starts[i - 1] == lo:
            i -= 1
        j = bisect_right(self._starts, hi)
        self._starts[i:j] = [lo, hi]
        self._values[i:j] = [value, after]
        self._merge(max(i - 1, 0), i + 2)

    def _merge(self, lo, hi):
        """Drop boundaries between equal neighbours so the list stays minimal."""
        for k in range(min(hi, len(self._starts) - 1), lo, -1):
            if self._values[k] == self._values[k - 1]:
                del self._starts[k], self._values[k]

    def items(self):
        ends = self._starts[1:] + [float("inf")]
        for s, e, v in zip(self._starts, ends, self._values):
            if v is not None:
                yield s, e, v


def test_a_fresh_map_is_all_gap():
    m = IntervalMap()
    assert m[0] is None and m[-10**9] is None
    assert list(m.items()) == []


def test_overwrite_in_the_middle_splits():
    m = IntervalMap()
    m.set(0, 100, "booked")
    m.set(40, 50, "lunch")
    assert list(m.items()) == [(0, 40, "booked"), (40, 50, "lunch"), (50, 100, "booked")]


def test_touching_equal_ranges_become_one():
    m = IntervalMap()
    m.set(5, 8, "x")
    m.set(8, 12, "x")
    assert list(m.items()) == [(5, 12, "x")]


@pytest.mark.parametrize("lo, hi", [(3, 3), (4, 1)])
def test_empty_or_backward_range_is_refused(lo, hi):
    with pytest.raises(ValueError, match="empty range"):
        IntervalMap().set(lo, hi, 1)


@pytest.mark.parametrize("seed", range(25))
def test_against_a_plain_array(seed):
    # The oracle is dumb on purpose: one slot per integer.
    rng = random.Random(seed)
    m, oracle = IntervalMap(), [None] * 60
    for _ in range(80):
        lo = rng.randrange(59)
        hi = rng.randrange(lo + 1, 60)
        v = rng.choice([None, "a", "b", "c"])
        m.set(lo, hi, v)
        oracle[lo:hi] = [v] * (hi - lo)
        assert [m[k] for k in range(60)] == oracle
        flat = list(m.items())
        for (_, e, v1), (s, _, v2) in zip(flat, flat[1:]):
            assert e < s or v1 != v2, "neighbours should have been merged"
