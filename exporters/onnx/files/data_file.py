"""Write data files along their places: blocks as they come, each at its own offset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tenp_edge.exporters.base import manifest_file
from tenp_edge.exporters.onnx.files.stored import Block, Place, Stored, data_files


class DataWriter:
    """A `Sink` into open data files."""

    def __init__(
        self,
        files: Mapping[str, BinaryIO],
        places: Mapping[str, Place],
        stored: Mapping[str, Stored],
    ) -> None:
        self._files, self._places, self._stored = files, places, stored
        self._left = {name: tensor.nbytes for name, tensor in stored.items()}

    def put(self, name: str, block: Block, row: int = 0, column: int = 0) -> None:
        stored, where = self._stored[name], self._places[name]
        assert block.dtype == stored.dtype.numpy(), (name, block.dtype)
        rows = np.atleast_2d(block)
        length, item = stored.shape[-1], block.dtype.itemsize
        start = where.offset + (row * length + column) * item
        stream = self._files[where.file]
        self._left[name] -= rows.nbytes
        if rows.shape[1] == length:
            _write_at(stream, start, rows)
            return
        for number, values in enumerate(rows):
            _write_at(stream, start + number * length * item, values)

    def require_complete(self) -> None:
        """Our own promise: every stored byte was put."""
        missing = [name for name, left in self._left.items() if left]
        assert not missing, f"not filled: {missing[:3]}"


def _write_at(stream: BinaryIO, offset: int, block: Block) -> None:
    stream.seek(offset)
    stream.write(np.ascontiguousarray(block).data)


@contextmanager
def data_writer(
    directory: Path, places: Mapping[str, Place], stored: Mapping[str, Stored]
) -> Iterator[DataWriter]:
    """Open every data file in ``directory``; they get their names when the body ends."""
    with ExitStack() as stack:
        files = {
            name: stack.enter_context(manifest_file(directory / name, nbytes))
            for name, nbytes in data_files(places).items()
        }
        writer = DataWriter(files, places, stored)
        yield writer
        writer.require_complete()
