"""Reading a written directory's weights back: the checkpoint's tensors by their own names.

    model.layers.0.mlp.experts.3.up_proj.weight.T (in, out) -> ...up_proj.weight (out, in)

The graph says where each lies; the data files are mapped and rows decoded when they are asked for.
How a tensor may be stored is the affair of `decoding`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from tenp_edge.checkpoint.files import ExpertWeights
from tenp_edge.checkpoint.source import Rows
from tenp_edge.checkpoint.tensor_types import TensorTypes, types_of_json
from tenp_edge.disk import read_json
from tenp_edge.errors import UserError
from tenp_edge.exporters.onnx.files.companions import NO_DIGEST
from tenp_edge.exporters.onnx.files.decoding import ALL, decoded, output_matrix, stored_somehow
from tenp_edge.models import FAMILIES, ModelConfig, TensorSpec, expected_tensors, read_config

_GRAPHS = ("model.onnx", "prefill.onnx")
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class _Tensor:
    """An initializer's place in a data file."""

    file: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def mapped(self) -> Array:
        """Its numbers, read from the disk as they are touched."""
        end = self.offset + int(np.prod(self.shape)) * self.dtype.itemsize
        if not self.file.is_file() or self.file.stat().st_size < end:
            raise UserError(f"{self.file} is missing or cut off", "export it again")
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape)


class OnnxWeights:
    """The model in ``directory`` (a `StoredModel`); ``reference``: the unpruned model's config.

    Raises UserError for another model, and for weights that are stored in a way not known here.
    """

    stored_dtype = None

    def __init__(self, directory: Path, reference: ModelConfig) -> None:
        self.directory = directory
        raw = read_json(directory / "config.json")
        self._tenp = read_json(directory / "tenp.json")
        self.config = read_config(raw, FAMILIES)
        if self.config.family != reference.family:
            ours, theirs = reference.family.model_type, self.config.family.model_type
            raise UserError(f"{directory} is another model: {theirs}, the reference is {ours}")
        self._stored, self._types = _places(directory), self._own_types()
        for name, spec in self.tensors.items():
            if not stored_somehow(self._stored, self.config, spec, self._types):
                raise UserError(f"{directory} stores {name} in a way that is not read back here")

    @property
    def plan_digest(self) -> str | None:
        digest = self._tenp.get("plan")
        return None if digest in (None, NO_DIGEST) else str(digest)

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return {spec.name: spec for spec in expected_tensors(self.config)}

    def read(self, name: str) -> torch.Tensor:
        """Tensor ``name`` in float32."""
        return _float(self._decoded(name)).reshape(self.tensors[name].shape)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` of a matrix, in float32."""
        return _float(self._decoded(name, slice(start, stop)))

    def held(self, name: str) -> Rows:
        """The mapped matrix: rows are read when they are asked for.

        An embedding that is the output matrix too may be stored as both: this is the latter.
        """
        spec = self.tensors[name]

        def rows(start: int, stop: int) -> torch.Tensor:
            at = slice(start, stop)
            given = self._stored, self._mapped, self.config, spec, at, self._types
            return _float(output_matrix(*given))

        return rows

    def expert(self, layer: int, expert: int) -> ExpertWeights:
        return ExpertWeights(*map(self.read, self.config.expert_tensors(layer, expert)))

    def held_experts(self, layer: int) -> Callable[[int], ExpertWeights]:
        return partial(self.expert, layer)

    def _decoded(self, name: str, at: slice = ALL) -> Array:
        spec = self.tensors[name]
        return decoded(self._stored, self._mapped, self.config, spec, at, self._types)

    def _own_types(self) -> TensorTypes | None:
        """Where every tensor has its own; of the experts that are in the directory."""
        raw = self._tenp.get("types")
        counts = {layer: len(row) for layer, row in self.config.expert_widths.items()}
        return None if raw is None else types_of_json(raw, counts)

    def _mapped(self, stored: str) -> Array:
        return self._stored[stored].mapped()


def _float(array: Array) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


def _places(directory: Path) -> dict[str, _Tensor]:
    """Every weight in the data files by its name."""
    graph = next((directory / n for n in _GRAPHS if (directory / n).is_file()), None)
    if graph is None:
        raise UserError(f"{directory} has no {_GRAPHS[0]}", "export it again")
    try:
        model = onnx.load_model(graph, load_external_data=False)
    except (DecodeError, ValueError):
        raise UserError(f"{graph} is not an ONNX model", "export it again") from None
    places = {}
    for tensor in model.graph.initializer:
        stated = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in stated:
            places[tensor.name] = _Tensor(
                directory / Path(stated["location"]).name,
                int(stated.get("offset", 0)),
                np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)),
                tuple(tensor.dims),
            )
    return places
