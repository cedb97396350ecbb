"""The speed of the memory is a number of this machine."""

from __future__ import annotations

from tenp_edge.runtime.memory.bandwidth import read_bandwidth


def test_memory_is_read_faster_than_any_disk() -> None:
    assert 1e8 < read_bandwidth(2, nbytes=2**22, seconds=0.01) < 1e14
