"""Encode rows on several threads while others are read; what is ready is written in order.

ggml's quantiser holds no lock of Python's, so plain threads do. Few chunks are on their way at a
time: memory does not grow with the matrix, and the reader waits for the encoders.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import BinaryIO

import torch

_AHEAD = 2  # chunks waiting per thread


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
