"""The weights as a directory would hold them, without the directory: rounded and decoded again.

What is measured of them is what the written ones lose; one matrix is decoded at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from tenp_edge.checkpoint.files import ExpertWeights
from tenp_edge.checkpoint.source import ModelSource, Rows
from tenp_edge.checkpoint.tensor_types import TensorTypes
from tenp_edge.exporters.onnx.files.stored import as_array
from tenp_edge.exporters.onnx.linear.mixed import FLOATS, Columns, rounded, type_of
from tenp_edge.models import TensorSpec


class RoundedWeights:
    """``source`` in ``types`` (a `WeightSource`), the columns weighed by ``columns``."""

    stored_dtype = None

    def __init__(self, source: ModelSource, types: TensorTypes, columns: Columns) -> None:
        self._source, self._types, self._columns = source, types, columns
        self.config = source.config
        self._layer: tuple[int, dict[int, ExpertWeights]] = (-1, {})

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return self._source.tensors

    def read(self, name: str) -> torch.Tensor:
        """Tensor ``name`` in float32, as it is decoded."""
        return self._rounded(self.tensors[name], self._source.read(name))

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._rounded(self.tensors[name], self._source.read_rows(name, start, stop))

    def held(self, name: str) -> Rows:
        """Rounded once, as float32."""
        spec, stored = self.tensors[name], self._source.held(name)
        if type_of(self._types, spec) == FLOATS:
            return stored
        whole = self._rounded(spec, stored(0, spec.shape[0]))
        return lambda start, stop: whole[start:stop]

    def expert(self, layer: int, expert: int) -> ExpertWeights:
        """Those of one layer are remembered: the forward asks again for every batch of tokens."""
        if self._layer[0] != layer:
            self._layer = layer, {}
        known = self._layer[1]
        if expert not in known:
            known[expert] = ExpertWeights(
                *map(self.read, self.config.expert_tensors(layer, expert))
            )
        return known[expert]

    def held_experts(self, layer: int) -> Callable[[int], ExpertWeights]:
        return partial(self.expert, layer)

    def _rounded(self, spec: TensorSpec, matrix: torch.Tensor) -> torch.Tensor:
        kind = type_of(self._types, spec)
        if kind == FLOATS:
            return matrix.float()
        return torch.from_numpy(rounded(as_array(matrix), kind, self._columns.of(spec)))
