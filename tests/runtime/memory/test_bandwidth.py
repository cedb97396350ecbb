"""The speed of the memory is a number of this machine."""

from __future__ import annotations

from pathlib import Path

from tenp_edge.runtime.memory.bandwidth import cache_bytes, read_bandwidth


def test_memory_is_read_faster_than_any_disk() -> None:
    assert 1e8 < read_bandwidth(2, nbytes=2**22, seconds=0.01) < 1e14


def test_a_cache_that_cores_share_counts_once(tmp_path: Path) -> None:
    """Two caches of the last level, of two cores each; what is above is not added."""
    for core in range(4):
        for index, (level, size, shared) in enumerate(
            [("1", "32K", f"{core}"), ("3", "32768K", f"{core // 2 * 2}-{core // 2 * 2 + 1}")]
        ):
            cache = tmp_path / f"cpu{core}" / "cache" / f"index{index}"
            cache.mkdir(parents=True)
            for name, value in (("level", level), ("size", size), ("shared_cpu_list", shared)):
                (cache / name).write_text(f"{value}\n", encoding="ascii")
    assert cache_bytes(tmp_path) == 2 * 32 * 2**20
    assert cache_bytes(tmp_path / "nothing") == 0
