"""Write a file along its manifest: header first, then every tensor at its own offset.

An expert is read once and its three matrices go to their places, which lie far apart in the merged
layout; other matrices pass in chunks of rows. So memory holds one expert or one chunk, whatever the
model's size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import BinaryIO

import torch

from tenp_edge.exporters.gguf.architectures import architecture
from tenp_edge.exporters.gguf.fields import padded
from tenp_edge.exporters.gguf.layout import Entry
from tenp_edge.exporters.gguf.types import TYPES
from tenp_edge.models import PROJECTIONS
from tenp_edge.progress import Task
from tenp_edge.registry import ManifestTensor
from tenp_edge.source import ModelSource

_CHUNK_BYTES = 32 * 2**20


class TensorWriter:
    """Writes the tensors of ``found`` behind a header of ``data_start`` bytes."""

    def __init__(
        self, stream: BinaryIO, source: ModelSource, found: Sequence[Entry], data_start: int
    ) -> None:
        self._stream, self._source = stream, source
        self._offsets: dict[str, int] = {}
        for entry in found:
            self._offsets[entry.tensor.name] = data_start
            data_start += padded(entry.tensor.nbytes)

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
            for projection in PROJECTIONS:
                role, matrix = f"expert_{projection}", getattr(weights, projection)
                own = targets.get((role, expert))
                tensor = (own or targets[role, None]).tensor
                nbytes = TYPES[tensor.type].nbytes(tensor.shape[-2:])
                place = self._offsets[tensor.name] + (0 if own else expert * nbytes)
                self._put_matrix(place, matrix, tensor)
                task.advance(nbytes)

    def _write_plain(self, entry: Entry) -> None:
        tensor, offset = entry.tensor, self._offsets[entry.tensor.name]
        assert entry.name is not None
        permuted = architecture(self._source.config).permuted and entry.role in ("q", "k")
        if entry.role in ("k_b", "v_b") or permuted or len(tensor.shape) == 1:
            whole = self._transformed(entry, self._source.read(entry.name))
            self._put(offset, TYPES[tensor.type].encode(whole))
            return
        rows, length = self._source.tensors[entry.name].shape
        step = max(1, _CHUNK_BYTES // (4 * length))
        for start in range(0, rows, step):
            chunk = self._source.read_rows(entry.name, start, min(start + step, rows))
            offset += self._put_matrix(offset, chunk, tensor, len(chunk))
        # Rows that only the file has (a shared expert grown to a multiple) stay zero.

    def _put_matrix(
        self, offset: int, matrix: torch.Tensor, tensor: ManifestTensor, rows: int | None = None
    ) -> int:
        """Encode ``matrix`` in chunks of rows, grown to the tensor's last two sizes; its bytes."""
        height, width = tensor.shape[-2:]
        step = max(1, _CHUNK_BYTES // (4 * width))
        start = offset
        for first in range(0, rows or height, step):
            last = min(first + step, rows or height)
            data = TYPES[tensor.type].encode(_grown(matrix[first:last], last - first, width))
            self._put(offset, data)
            offset += len(data)
        return offset - start

    def _transformed(self, entry: Entry, whole: torch.Tensor) -> torch.Tensor:
        config = self._source.config
        if entry.role in ("q", "k"):
            heads = config.num_attention_heads
            return interleave(whole, heads if entry.role == "q" else config.num_key_value_heads)
        if entry.role not in ("k_b", "v_b"):
            return whole
        assert config.mla is not None
        nope = config.mla.qk_nope_head_dim
        by_head = whole.reshape(config.num_attention_heads, -1, whole.shape[-1])
        if entry.role == "k_b":
            return by_head[:, :nope].transpose(1, 2).contiguous()
        return by_head[:, nope:].contiguous()

    def _put(self, offset: int, data: memoryview) -> None:
        self._stream.seek(offset)
        self._stream.write(data)


def interleave(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of q or k from "first halves, second halves" to pairs, as arch llama rotates them."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _grown(matrix: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """``matrix`` with zero rows and columns added up to (rows, columns)."""
    if tuple(matrix.shape) == (rows, columns):
        return matrix
    grown = matrix.new_zeros(rows, columns)
    grown[: matrix.shape[0], : matrix.shape[1]] = matrix
    return grown
