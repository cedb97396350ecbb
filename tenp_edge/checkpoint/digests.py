"""SHA-256 of what was written: how damage that leaves a file's size as it was is noticed.

Of the hashes that Python brings, it is the fastest where the processor has instructions for it
(docs/robustness.md), and `sha256sum` says the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

from tenp_edge.progress import QUIET, Progress

_BLOCK_BYTES = 4 * 2**20


class HashedStream:
    """A stream that is written from its beginning to its end; ``digest`` is of all that was."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._state = stream, hashlib.sha256()

    def write(self, data: bytes | memoryview) -> int:
        self._state.update(data)
        return self._stream.write(data)

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal digits."""
        return self._state.hexdigest()


def file_digest(file: Path, advance: Callable[[int], None] = lambda _: None) -> str:
    """SHA-256 of ``file`` in hexadecimal digits; ``advance`` is told every number of bytes read."""
    state, block = hashlib.sha256(), bytearray(_BLOCK_BYTES)
    view = memoryview(block)
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(block):
            state.update(view[:count])
            advance(count)
    return state.hexdigest()


def file_digests(
    files: Iterable[Path], title: str, progress: Progress = QUIET
) -> Mapping[Path, str]:
    """Of each of ``files``, with one bar over their bytes."""
    listed = list(files)
    with progress.task(title, sum(file.stat().st_size for file in listed), "bytes") as task:
        return {file: file_digest(file, task.advance) for file in listed}
