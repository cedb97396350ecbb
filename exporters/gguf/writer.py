"""Write a file along its manifest: header first, then every tensor at its own offset.

An expert is read once and its matrices go to their places, which lie far apart in the merged
layout; other matrices pass in chunks of rows. Rows are encoded by threads, a few small chunks ahead
(`Encoding`). So memory holds one expert, or two small ones, and a few chunks, whatever the model's
size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, BinaryIO

import torch
from torch.nn.functional import pad

from tenp_edge.calibration.imatrix import Importance
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.base import ManifestTensor
from tenp_edge.exporters.gguf.computed import computed_tensors
from tenp_edge.exporters.gguf.encoding import Encoding
from tenp_edge.exporters.gguf.fields import padded
from tenp_edge.exporters.gguf.imatrix_file import matrix_squares
from tenp_edge.exporters.gguf.layout import Entry
from tenp_edge.exporters.gguf.source.kept_bytes import KeptBytes
from tenp_edge.exporters.gguf.transforms import is_transformed, to_file
from tenp_edge.exporters.gguf.types import TYPES, TensorType
from tenp_edge.models import ModelConfig
from tenp_edge.progress import Task

_READ_BYTES = 32 * 2**20
_TASK_BYTES = 4 * 2**20  # of float32: what one thread encodes at a time
# Experts above this are finished before the next is read.
_ALONE_BYTES = 64 * 2**20


class TensorWriter:
    """Writes the tensors of ``found`` behind a header of ``data_start`` bytes.

    A context manager: what `write` started is in the file when it is left. ``imatrix`` weighs the
    columns of every matrix that it knows. ``kept``: bytes that are not encoded but moved.
    """

    def __init__(
        self,
        stream: BinaryIO,
        source: ModelSource,
        found: Sequence[Entry],
        data_start: int,
        imatrix: Importance | None = None,
        kept: KeptBytes | None = None,
    ) -> None:
        self._source, self._kept = source, kept
        self._weights = ColumnWeights(source.config, imatrix)
        self._encoding = Encoding(stream)
        self._offsets: dict[str, int] = {}
        for entry in found:
            self._offsets[entry.tensor.name] = data_start
            data_start += padded(entry.tensor.nbytes)

    def __enter__(self) -> TensorWriter:
        self._encoding.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._encoding.__exit__(*error)

    def write(self, found: Sequence[Entry], task: Task) -> None:
        experts: dict[int, list[Entry]] = defaultdict(list)
        for entry in found:
            if entry.layer is not None and entry.role.startswith("expert_"):
                experts[entry.layer].append(entry)
            else:
                self._write_plain(entry)
                task.advance(entry.tensor.nbytes)
        for layer, group in experts.items():
            self._write_experts(layer, group, task)

    def _write_experts(self, layer: int, group: list[Entry], task: Task) -> None:
        targets = {(entry.role, entry.expert): entry for entry in group}
        for expert in range(len(self._source.config.expert_widths[layer])):
            weights = self._source.expert(layer, expert)
            for part in self._source.config.parts_of(layer, expert):
                role, stored = f"expert_{part}", getattr(weights, part)
                matrix = stored if stored.dim() == 2 else stored[None]
                expert_entry = targets.get((role, expert))
                entry = expert_entry or targets.get((role, None))
                if entry is None:
                    continue  # Of an expert without neurons.
                tensor = entry.tensor
                # Of one expert: a bias is one row.
                shape = tensor.shape if expert_entry else tensor.shape[1:]
                rows = shape[0] if len(shape) == 2 else 1
                nbytes = TYPES[tensor.type].nbytes(shape)
                place = self._offsets[tensor.name] + (0 if expert_entry else expert * nbytes)
                columns = self._weights.expert(layer, expert, part, tensor)
                kept = self._kept
                moved = None if kept is None else kept.expert(layer, expert, part, tensor)
                if moved is None:
                    place += self._put_rows(place, matrix, tensor, columns)
                else:
                    place += self._put_bytes(place, moved)
                self._put_nothing(place, tensor, rows - len(matrix), columns)
                task.advance(nbytes)
            if len(weights.matrices) * weights.down.nbytes > _ALONE_BYTES:
                self._encoding.flush()

    def _write_plain(self, entry: Entry) -> None:
        tensor, offset = entry.tensor, self._offsets[entry.tensor.name]
        if self._kept is not None and self._kept.has(tensor, entry.name):
            for piece in self._kept.plain(tensor):
                offset += self._put_bytes(offset, piece)
            return
        config = self._source.config
        if entry.name is None:
            self._put_rows(offset, computed_tensors(config)[entry.role][None], tensor, None)
            return
        if is_transformed(config, entry.role) or len(tensor.shape) == 1:
            whole = to_file(config, entry.role, self._source.read(entry.name))
            rows = whole.reshape(-1, whole.shape[-1])
            self._put_rows(offset, rows, tensor, self._weights.matrix(entry))
            return
        columns = self._weights.matrix(entry)
        height, length = self._source.tensors[entry.name].shape
        step = max(1, _READ_BYTES // (4 * length))
        for start in range(0, height, step):
            chunk = self._source.read_rows(entry.name, start, min(start + step, height))
            offset += self._put_rows(offset, chunk, tensor, columns)
        self._put_nothing(offset, tensor, tensor.shape[0] - height, columns)

    def _put_bytes(self, offset: int, data: memoryview) -> int:
        """Write ``data`` as it is; how many bytes that is."""
        self._encoding.put(offset, lambda: data)
        return data.nbytes

    def _put_nothing(
        self, offset: int, tensor: ManifestTensor, rows: int, columns: torch.Tensor | None
    ) -> None:
        """Rows that only the file has: an expert padded to the full width, a shared expert grown to
        a multiple. Zeros are encoded like any weights: not every type writes them as zero bytes."""
        if rows:
            self._put_rows(offset, torch.zeros(rows, tensor.shape[-1]), tensor, columns)

    def _put_rows(
        self,
        offset: int,
        rows: torch.Tensor,
        tensor: ManifestTensor,
        columns: torch.Tensor | None,
    ) -> int:
        """Encode ``rows``, grown to the tensor's row length, in tasks; how many bytes it takes."""
        kind, length = TYPES[tensor.type], tensor.shape[-1]
        step, start = max(1, _TASK_BYTES // (4 * length)), offset
        for part in torch.split(rows, step) if len(rows) else ():
            encode = partial(_encode, kind, part, length, columns, tensor.name)
            self._encoding.put(offset, encode)
            offset += kind.nbytes((len(part), length))
        return offset - start


def _encode(
    kind: TensorType, rows: torch.Tensor, length: int, columns: torch.Tensor | None, name: str
) -> memoryview:
    if rows.shape[-1] < length:
        rows = pad(rows, (0, length - rows.shape[-1]))
    return kind.encode(rows, columns, name)


class ColumnWeights:
    """What each tensor's columns are weighed by: float32 [row length], None where not known."""

    def __init__(self, config: ModelConfig, importance: Importance | None) -> None:
        self._config, self._importance = config, importance

    def expert(
        self, layer: int, expert: int, part: str, tensor: ManifestTensor
    ) -> torch.Tensor | None:
        """Of one part of an expert; columns that only the file has weigh nothing."""
        if self._importance is None or not TYPES[tensor.type].weighs_columns:
            return None
        weights = self._importance.expert(layer, expert, part).weights()
        return pad(weights, (0, tensor.shape[-1] - len(weights)))

    def matrix(self, entry: Entry) -> torch.Tensor | None:
        """Of a matrix outside the routed experts."""
        return self.importance(entry) if TYPES[entry.tensor.type].weighs_columns else None

    def importance(self, entry: Entry) -> torch.Tensor | None:
        """The same whatever the matrix's type."""
        if self._importance is None:
            return None
        squares = matrix_squares(self._config, self._importance, entry)
        if squares is None:
            return None
        return pad(squares.weights(), (0, entry.tensor.shape[-1] - len(squares.sums)))
