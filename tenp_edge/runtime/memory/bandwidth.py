"""How fast this machine reads its memory: what bounds the speed of generating text."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

# Far above what caches hold, and little beside what a machine has free.
_BYTES = 256 * 2**20
_SECONDS = 0.6


def read_bandwidth(threads: int, nbytes: int = _BYTES, seconds: float = _SECONDS) -> float:
    """Bytes a second that ``threads`` read together, the best of the rounds that fit into
    ``seconds``."""
    parts = [np.ones(nbytes // threads // 8, dtype=np.uint64) for _ in range(threads)]
    total, best, end = sum(part.nbytes for part in parts), 0.0, time.perf_counter() + seconds
    with ThreadPoolExecutor(threads) as pool:
        while True:
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))  # which lets go of Python's lock
            best = max(best, total / (time.perf_counter() - start))
            if time.perf_counter() >= end:
                return best
