"""The weights as a file would hold them, without the file: encoded and decoded in memory.

    source matrix -> rows of the file's tensor -> its type's bytes -> float32 -> source matrix

The bytes are those that `writer` writes, so what is measured here is what the file will lose. One
layer's experts stay in memory, encoded: the forward asks for them once per batch of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch.nn.functional import pad

from tenp_edge.calibration.imatrix import Importance
from tenp_edge.checkpoint.files import ExpertWeights
from tenp_edge.checkpoint.source import ModelSource, Rows
from tenp_edge.exporters.gguf.layout import Entry
from tenp_edge.exporters.gguf.transforms import file_roles, from_file, to_file
from tenp_edge.exporters.gguf.types import TYPES
from tenp_edge.exporters.gguf.writer import ColumnWeights
from tenp_edge.models import ModelConfig, TensorSpec, expected_tensors

_CHUNK_BYTES = 4 * 2**20  # of float32: what one thread encodes at a time


class Requantised:
    """``source`` with the types of ``found``, the file's tensors (a `WeightSource`).

    ``imatrix`` weighs the columns, as in the file. ``config`` is that of the file read back: a tied
    model may store its output matrix by itself.
    """

    stored_dtype = None

    def __init__(
        self, source: ModelSource, found: Iterable[Entry], imatrix: Importance | None
    ) -> None:
        self._source = source
        self._weights = ColumnWeights(source.config, imatrix)
        self._plain: dict[tuple[str, int | None], Entry] = {}
        self._experts: dict[tuple[int, str, int | None], Entry] = {}
        for entry in found:
            if entry.layer is not None and entry.role.startswith("expert_"):
                self._experts[entry.layer, entry.role, entry.expert] = entry
            else:
                self._plain[entry.role, entry.layer] = entry
        self.config: ModelConfig = replace(
            source.config, tie_word_embeddings=("output", None) not in self._plain
        )
        self._layer: tuple[int, dict[tuple[int, str], _Encoded]] | None = None

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return {spec.name: spec for spec in expected_tensors(self.config)}

    def read(self, name: str) -> torch.Tensor:
        """Tensor ``name`` in float32, as it is decoded."""
        spec = self.tensors[name]
        if spec.expert is not None and spec.layer is not None:
            part = spec.role.removeprefix("expert_")
            return self._expert_layer(spec.layer)[spec.expert, part].decoded()
        entries = [self._plain[role, spec.layer] for role in file_roles(spec.role)]
        whole = self._source.read(entries[0].name or name)
        parts = (self._rounded(e, to_file(self.config, e.role, whole)) for e in entries)
        return from_file(self.config, spec.role, *parts)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` of an embedding or output matrix, in float32."""
        entry = self._entry(self.tensors[name])
        return self._rounded(entry, self._source.read_rows(entry.name or name, start, stop))

    def held(self, name: str) -> Rows:
        """Encoded once, rows are decoded when they are asked for."""
        entry = self._entry(self.tensors[name])
        stored = self._source.held(entry.name or name)
        encoded = _Encoded(stored(0, entry.tensor.shape[0]), entry, self._weights.matrix(entry))
        return encoded.rows

    def expert(self, layer: int, expert: int) -> ExpertWeights:
        if not self.config.expert_widths[layer][expert]:
            return self._source.expert(layer, expert)
        matrices = self._expert_layer(layer)
        parts = self.config.expert_parts
        return ExpertWeights.of({part: matrices[expert, part].decoded() for part in parts})

    def held_experts(self, layer: int) -> Callable[[int], ExpertWeights]:
        return partial(self.expert, layer)

    # Helpers.

    def _entry(self, spec: TensorSpec) -> Entry:
        return self._plain[spec.role, spec.layer]

    def _rounded(self, entry: Entry, matrix: torch.Tensor) -> torch.Tensor:
        return _Encoded(matrix, entry, self._weights.matrix(entry)).decoded()

    def _expert_layer(self, layer: int) -> dict[tuple[int, str], _Encoded]:
        """All experts of ``layer``, encoded on all threads; those of one layer are remembered."""
        if self._layer is None or self._layer[0] != layer:
            self._layer = None
            with ThreadPoolExecutor(torch.get_num_threads()) as pool:
                matrices = dict(pool.map(_encode, self._expert_tasks(layer)))
            self._layer = layer, matrices
        return self._layer[1]

    def _expert_tasks(self, layer: int) -> Iterator[_ExpertTask]:
        for expert in range(len(self.config.expert_widths[layer])):
            weights = self._source.expert(layer, expert)
            for part in self.config.expert_parts:
                role, matrix = f"expert_{part}", getattr(weights, part)
                expert_entry = self._experts.get((layer, role, expert))
                entry = expert_entry or self._experts.get((layer, role, None))
                if entry is None:
                    continue  # Of an expert without neurons.
                columns = self._weights.expert(layer, expert, part, entry.tensor)
                yield (expert, part), matrix, entry, columns


class _Encoded:
    """A matrix (or vector) in the bytes of ``entry``'s type, its rows grown to the file's."""

    def __init__(self, matrix: torch.Tensor, entry: Entry, columns: torch.Tensor | None) -> None:
        self._shape = tuple(matrix.shape)
        self._kind, self._length = TYPES[entry.tensor.type], entry.tensor.shape[-1]
        rows = matrix.reshape(-1, matrix.shape[-1])
        step = max(1, _CHUNK_BYTES // (4 * self._length))
        self._data = bytearray()
        for part in torch.split(rows, step):
            grown = pad(part, (0, self._length - part.shape[-1]))
            self._data += self._kind.encode(grown, columns, entry.tensor.name)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        size = self._kind.nbytes((self._length,))
        data = self._data[start * size : stop * size]
        decoded = self._kind.decode(data, (len(data) // size, self._length))
        return decoded[:, : self._shape[-1]].contiguous()

    def decoded(self) -> torch.Tensor:
        count = len(self._data) // self._kind.nbytes((self._length,))
        return self.rows(0, count).reshape(self._shape)


_Key = tuple[int, str]
_ExpertTask = tuple[_Key, torch.Tensor, Entry, torch.Tensor | None]


def _encode(task: _ExpertTask) -> tuple[_Key, _Encoded]:
    key, matrix, entry, columns = task
    return key, _Encoded(matrix, entry, columns)
