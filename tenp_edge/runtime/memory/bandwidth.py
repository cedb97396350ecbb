"""How fast this machine reads its memory: what bounds the speed of generating text."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from tenp_edge import machine
from tenp_edge.errors import UserError
from tenp_edge.units import parse_size

# Little beside what a machine has free. Times what the last caches hold, where they hold much: what
# stays in them is not read from memory.
_BYTES, _CACHES = 256 * 2**20, 4
_SECONDS = 0.6
_PROCESSORS = Path("/sys/devices/system/cpu")


def read_bandwidth(threads: int, nbytes: int | None = None, seconds: float = _SECONDS) -> float:
    """Bytes a second that ``threads`` read together, the best of the rounds that fit into
    ``seconds``; ``nbytes`` of them, by default more than the caches hold."""
    nbytes = nbytes or _beyond_caches()
    parts = [np.ones(nbytes // threads // 8, dtype=np.uint64) for _ in range(threads)]
    total, best, end = sum(part.nbytes for part in parts), 0.0, time.perf_counter() + seconds
    with ThreadPoolExecutor(threads) as pool:
        while True:
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))  # which lets go of Python's lock
            best = max(best, total / (time.perf_counter() - start))
            if time.perf_counter() >= end:
                return best


def _beyond_caches() -> int:
    wanted = max(_BYTES, _CACHES * cache_bytes(_PROCESSORS))
    return min(wanted, machine.memory().available // 4)


def cache_bytes(processors: Path) -> int:
    """What the last caches hold together, by Linux' description of the ``processors``: a cache that
    cores share counts once. 0 where nothing is said."""
    levels: dict[int, dict[str, int]] = {}
    for cache in processors.glob("cpu[0-9]*/cache/index[0-9]*"):
        with suppress(OSError, ValueError, UserError):
            level, size, shared = (
                (cache / name).read_text(encoding="ascii").strip()
                for name in ("level", "size", "shared_cpu_list")
            )
            levels.setdefault(int(level), {})[shared] = parse_size(size)
    return sum(levels[max(levels)].values()) if levels else 0
