"""Hidden states between two layers: [sequences, seq, hidden] in memory or in a file.

The file is read and written in place, a few sequences at a time, and is not mapped: mapped pages
count as resident memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import torch

from tenp_edge.checkpoint.files import tensor_bytes
from tenp_edge.disk import read_range, told_when_full

SPILL_BYTES = 2**30


class States(Protocol):
    """Reads and writes runs of whole sequences."""

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Sequences ``start`` to ``stop`` - 1, [stop - start, seq, hidden], on the CPU."""
        ...

    def write(self, start: int, hidden: torch.Tensor) -> None:
        """``hidden`` [n, seq, hidden] becomes sequences ``start`` to ``start`` + n - 1."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class MemoryStates:
    """All states in one tensor, ``hidden`` [sequences, seq, hidden]; `read` gives views of it."""

    def __init__(self, hidden: torch.Tensor) -> None:
        self.hidden = hidden

    def read(self, start: int, stop: int) -> torch.Tensor:
        return self.hidden[start:stop]

    def write(self, start: int, hidden: torch.Tensor) -> None:
        self.hidden[start : start + len(hidden)] = hidden

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class FileStates:
    """All states, of ``shape`` [sequences, seq, hidden], in one raw file; ``temporary`` deletes it
    at the end of the ``with``."""

    def __init__(
        self, file: Path, shape: tuple[int, int, int], dtype: torch.dtype, temporary: bool = False
    ) -> None:
        self.file, self.shape, self.dtype, self.temporary = file, shape, dtype, temporary
        self._sequence_bytes = shape[1] * shape[2] * dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self._sequence_bytes

    def read(self, start: int, stop: int) -> torch.Tensor:
        size = self._sequence_bytes
        data = read_range(self.file, start * size, (stop - start) * size)
        return torch.frombuffer(data, dtype=self.dtype).reshape(-1, *self.shape[1:])

    def write(self, start: int, hidden: torch.Tensor) -> None:
        """As `States.write`, in place; the file grows as it is written."""
        mode = "r+b" if self.file.exists() else "wb"
        with told_when_full(self.file, self.nbytes), self.file.open(mode) as stream:
            stream.seek(start * self._sequence_bytes)
            stream.write(tensor_bytes(hidden))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.temporary:
            self.file.unlink(missing_ok=True)


@contextmanager
def whole_file(target: FileStates) -> Iterator[FileStates]:
    """``target`` under a temporary name while the body writes it: it gets its own when the body
    ends, if anything was written, and nothing stays when the body fails."""
    file = target.file.with_name(target.file.name + ".partial")
    file.unlink(missing_ok=True)
    try:
        yield FileStates(file, target.shape, target.dtype)
        if file.is_file():
            file.replace(target.file)
    except BaseException:
        file.unlink(missing_ok=True)
        raise


class CachedFileStates(FileStates):
    """The same, for many small files that are read again soon: what the system keeps of them in
    its page cache stays there (`read_range` drops it, and so waits for the disk every time)."""

    def read(self, start: int, stop: int) -> torch.Tensor:
        size = self._sequence_bytes
        with self.file.open("rb") as stream:
            stream.seek(start * size)
            data = bytearray(stream.read((stop - start) * size))
        return torch.frombuffer(data, dtype=self.dtype).reshape(-1, *self.shape[1:])
