"""Encode rows on several threads while others are read; what is ready is written in order.

ggml's quantiser holds no lock of Python's, so plain threads do. Few chunks are on their way at a
time: memory does not grow with the matrix, and the reader waits for the encoders.
"""

from __future__ import annotations

import io
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import BinaryIO

import torch

_AHEAD = 2  # chunks waiting per thread
_PROBE_SHAPE, _PROBE_SECONDS = (64, 2048), 0.1


class Encoding:
    """Writes the bytes that each task returns at the task's own offset of ``stream``.

    A context manager: leaving it writes what is on its way, leaving it by an error drops that.
    """

    def __init__(self, stream: BinaryIO, threads: int | None = None) -> None:
        threads = threads or torch.get_num_threads()
        self._stream, self._limit = stream, _AHEAD * threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="encoding")
        self._pending: deque[tuple[int, Future[memoryview]]] = deque()

    def put(self, offset: int, encode: Callable[[], memoryview]) -> None:
        """Write what ``encode`` returns at ``offset``, now or later; raises what it raised."""
        self._pending.append((offset, self._pool.submit(encode)))
        while len(self._pending) > self._limit:
            self._write_first()

    def flush(self) -> None:
        """Wait until everything is written, and so nothing holds on to its source."""
        while self._pending:
            self._write_first()

    def _write_first(self) -> None:
        offset, future = self._pending.popleft()
        data = future.result()
        self._stream.seek(offset)
        self._stream.write(data)

    def __enter__(self) -> Encoding:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._pool.shutdown(cancel_futures=True)


def encoding_speed(encode: Callable[[torch.Tensor], memoryview]) -> float:
    """Bytes of float32 rows that ``encode`` takes per second on all threads, tried on noise."""
    rows = torch.randn(_PROBE_SHAPE, generator=torch.Generator().manual_seed(0))
    encode(rows)  # the first call loads the library and its tables
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _PROBE_SECONDS:
        with Encoding(io.BytesIO()) as encoding:
            for _ in range(2 * torch.get_num_threads()):
                encoding.put(0, partial(encode, rows))
                done += rows.nbytes
    return done / elapsed
