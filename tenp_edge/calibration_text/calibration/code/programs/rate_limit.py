"""Token-bucket rate limiting for asyncio clients."""

import asyncio
import time
from collections.abc import Callable


class TokenBucket:
    """Allow ``rate`` acquisitions per second with bursts up to ``capacity``.

    Waiters are served in arrival order. The lock guarantees that: a coroutine
    holds it while it sleeps, so nobody can overtake and starve the first one.

    Parameters
    ----------
    rate:
        Tokens added per second, must be positive.
    capacity:
        Most tokens that can pile up while idle. The bucket starts full.
    clock:
        Replaceable for tests; must never go backwards.
    """

    def __init__(self, rate: float, capacity: float, clock: Callable[[], float] = time.monotonic):
        if rate <= 0 or capacity < 1:
            raise ValueError("rate must be > 0 and capacity >= 1")
        self.rate, self.capacity, self._clock = rate, capacity, clock
        self._tokens = float(capacity)
        self._stamp = clock()
        self._lock = asyncio.Lock()

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self.capacity, self._tokens + (now - self._stamp) * self.rate)
        self._stamp = now

    def try_acquire(self, n: float = 1) -> bool:
        """Take ``n`` tokens if they are there right now."""
        self._refill()
        if self._lock.locked() or self._tokens < n:
            return False
        self._tokens -= n
        return True

    async def acquire(self, n: float = 1) -> float:
        """Wait for ``n`` tokens; returns the seconds spent waiting."""
        if n > self.capacity:
            raise ValueError(f"{n} tokens can never fit in a bucket of {self.capacity}")
        started = self._clock()
        async with self._lock:
            self._refill()
            while self._tokens < n:
                await asyncio.sleep((n - self._tokens) / self.rate)
                self._refill()
            self._tokens -= n
        return self._clock() - started


async def _demo() -> None:
    bucket = TokenBucket(rate=50, capacity=5)
    order: list[int] = []

    async def worker(i: int) -> float:
        waited = await bucket.acquire()
        order.append(i)
        return waited

    t0 = time.perf_counter()
    waits = await asyncio.gather(*map(worker, range(15)))
    took = time.perf_counter() - t0
    # five free, ten more at 50 per second -> about 0.2 s
    assert 0.18 < took < 0.5, took
    assert order == sorted(order), "arrival order was not respected"
    print(f"15 acquisitions in {took:.3f} s, longest wait {max(waits):.3f} s")


if __name__ == "__main__":
    asyncio.run(_demo())
