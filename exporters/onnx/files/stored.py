"""Weights of an ONNX directory: what is stored, where it lies, and how it is filled.

A graph names its weights long before one is read. `Stored` is such a promise (name, type, shape),
`Fill` keeps it: it reads from a `ModelSource` and puts blocks into a `Sink`. Their places in the
data files follow from the promises alone, so the sizes are known before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.base import ManifestTensor
from tenp_edge.models import Shape

Block = npt.NDArray[Any]

DATA_NAME = "model.data"
# onnxruntime maps data files: a large tensor starts on a page, a small one on a cache line.
_PAGE, _LINE, _LARGE = 4096, 64, 65536


@dataclass(frozen=True)
class Stored:
    """A tensor in a data file. ``part``: "routed experts" or "other"."""

    name: str
    dtype: ir.DataType
    shape: Shape
    part: str = "other"

    @property
    def nbytes(self) -> int:
        return -(-prod(self.shape) * self.dtype.bitwidth // 8)

    def manifest(self) -> ManifestTensor:
        return ManifestTensor(self.name, self.shape, self.dtype.name, self.nbytes, self.part)


class Sink(Protocol):
    """Where a `Fill` puts its numbers."""

    def put(self, name: str, block: Block, row: int = 0, column: int = 0) -> None:
        """Place ``block``, (rows, columns) or (columns,), with its corner at (row, column).

        A tensor of more dimensions counts as a matrix of its last one; ``block`` has its type.
        """
        ...


@dataclass(frozen=True)
class Fill:
    """Fills the stored tensors ``names`` in one go: one reading of their source."""

    names: tuple[str, ...]
    run: Callable[[ModelSource, Sink], None]


@dataclass(frozen=True)
class Place:
    """Where a stored tensor lies."""

    file: str
    offset: int
    nbytes: int


def place(stored: Iterable[Stored], shard_bytes: int | None = None) -> dict[str, Place]:
    """Offsets in one data file, or in several of at most ``shard_bytes`` each.

    A tensor is never split: one that is larger than a shard has a file to itself.
    """
    shards: list[list[tuple[str, int, int]]] = [[]]
    end = 0
    for tensor in stored:
        start = _aligned(end, tensor.nbytes)
        if shard_bytes is not None and shards[-1] and start + tensor.nbytes > shard_bytes:
            shards.append([])
            start = 0
        shards[-1].append((tensor.name, start, tensor.nbytes))
        end = start + tensor.nbytes
    names = _file_names(len(shards))
    return {
        name: Place(file, start, nbytes)
        for file, shard in zip(names, shards, strict=True)
        for name, start, nbytes in shard
    }


def data_files(places: Mapping[str, Place]) -> dict[str, int]:
    """Exact bytes of every data file."""
    sizes: dict[str, int] = {}
    for where in places.values():
        sizes[where.file] = max(sizes.get(where.file, 0), where.offset + where.nbytes)
    return sizes


def as_array(tensor: Any) -> npt.NDArray[np.float32]:
    """A torch tensor of any float dtype as float32: unquantised ONNX is always that."""
    array: npt.NDArray[np.float32] = tensor.float().numpy()
    return array


def _aligned(offset: int, nbytes: int) -> int:
    step = _PAGE if nbytes >= _LARGE else _LINE
    return -(-offset // step) * step


def _file_names(count: int) -> list[str]:
    if count == 1:
        return [DATA_NAME]
    return [f"model-{number:05}-of-{count:05}.data" for number in range(1, count + 1)]
