"""Reading a written file's weights back, decoded by ggml: the source model's tensors by its names.

    blk.L.ffn_gate.E.weight, or slice E of blk.L.ffn_gate_exps.weight -> experts.E.gate_proj.weight

One tensor, or one expert, is read and decoded at a time; what the file grew (an expert padded to
the full width, a shared expert to a multiple of it) is cut off again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import gguf
import torch

from tenp_edge.checkpoint.files import ExpertWeights
from tenp_edge.checkpoint.source import Rows
from tenp_edge.disk import read_range
from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf.architectures import (
    NAMES,
    expert_name,
    merged_name,
    tensor_name,
)
from tenp_edge.exporters.gguf.transforms import file_roles, from_file, is_transformed, to_file
from tenp_edge.exporters.gguf.types import TYPES
from tenp_edge.models import ModelConfig, Shape, TensorSpec, expected_tensors
from tenp_edge.models.model_config import CONSTANT

_BY_ID = {kind.ggml_id: kind for kind in TYPES.values()}


class GgufModel:
    """The model in ``file``, whose unpruned form ``config`` describes (a `StoredModel`).

    Raises UserError for a file that holds other tensors, or types that are not in TYPES.
    """

    stored_dtype = None

    def __init__(self, file: Path, config: ModelConfig) -> None:
        self.file = file
        try:
            reader = gguf.GGUFReader(file)
        except (ValueError, IndexError, KeyError, UnicodeDecodeError) as error:
            raise UserError(f"{file.name} is not a GGUF file or is cut short") from error
        fields = {name: reader.fields[name] for name in reader.fields if name.startswith("tenp.")}
        self._tenp = {name.removeprefix("tenp."): f.contents() for name, f in fields.items()}
        self._stored = {tensor.name: _Stored.of(tensor) for tensor in reader.tensors}
        self.config = self._own_config(config)
        self._check()

    @property
    def plan_digest(self) -> str | None:
        digest = self._tenp.get("plan_digest")
        return None if digest is None else str(digest)

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return {spec.name: spec for spec in expected_tensors(self.config)}

    def read(self, name: str) -> torch.Tensor:
        """Tensor ``name`` in float32."""
        spec = self.tensors[name]
        if spec.expert is not None and spec.layer is not None:
            return self._expert_part(spec.layer, spec.expert, spec.role.removeprefix("expert_"))
        parts = (self._stored[part].read(self.file) for part in self._parts(spec))
        whole = from_file(self.config, spec.role, *parts)
        return whole[tuple(slice(size) for size in spec.shape)].contiguous()

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows ``start:stop`` of an embedding or output matrix, in float32."""
        return self._stored[self._name(self.tensors[name])].rows(self.file, start, stop)

    def held(self, name: str) -> Rows:
        """Its stored bytes are kept, rows are decoded when they are asked for."""
        return self._stored[self._name(self.tensors[name])].held(self.file)

    def expert(self, layer: int, expert: int) -> ExpertWeights:
        parts = self.config.parts_of(layer, expert)
        return ExpertWeights.of({part: self._expert_part(layer, expert, part) for part in parts})

    def held_experts(self, layer: int) -> Callable[[int], ExpertWeights]:
        return partial(self.expert, layer)

    # Helpers.

    def _expert_part(self, layer: int, expert: int, part: str) -> torch.Tensor:
        stored = self._stored.get(merged_name(layer, part))
        if stored is not None:
            height = stored.shape[-2] if len(stored.shape) == 3 else 1
            whole = stored.rows(self.file, expert * height, (expert + 1) * height)
            whole = whole if len(stored.shape) == 3 else whole[0]
        else:
            whole = self._own_part(layer, expert, part)
        width = self.config.expert_widths[layer][expert]
        if part.startswith("down"):
            return whole[:, :width].contiguous() if part == "down" else whole
        return whole[:width]

    def _own_part(self, layer: int, expert: int, part: str) -> torch.Tensor:
        stored = self._stored.get(expert_name(layer, expert, part))
        if stored is not None:
            return stored.read(self.file)
        hidden = self.config.hidden_size  # Of an expert without neurons.
        if part == "down":
            return torch.empty(hidden, 0)
        return torch.empty(0) if part.endswith("_bias") else torch.empty(0, hidden)

    def _name(self, spec: TensorSpec) -> str:
        return tensor_name(self.config, spec.role, spec.layer)

    def _own_config(self, config: ModelConfig) -> ModelConfig:
        """``config`` with the file's experts and widths, and its output matrix where it has one."""
        widths = {layer: self._widths(layer, config) for layer in config.moe_layers}
        counts = {len(row) for row in widths.values()}
        if len(counts) != 1:
            raise UserError(
                f"{self.file.name} has layers of {min(counts)} to {max(counts)} experts"
            )
        return replace(
            config,
            num_experts=counts.pop(),
            expert_widths=widths,
            constants=self._constants(widths),
            tie_word_embeddings=NAMES["output"] not in self._stored,
        )

    def _constants(self, widths: Mapping[int, Sequence[int]]) -> dict[int, frozenset[int]]:
        """Experts without neurons that have a tensor all the same."""
        found = {
            layer: frozenset(
                expert
                for expert, width in enumerate(row)
                if not width and expert_name(layer, expert, CONSTANT) in self._stored
            )
            for layer, row in widths.items()
        }
        return {layer: experts for layer, experts in found.items() if experts}

    def _widths(self, layer: int, config: ModelConfig) -> tuple[int, ...]:
        """Of the layer's experts: as ``tenp.expert_widths`` says, else as the tensors are."""
        router = self._stored.get(tensor_name(config, "router", layer))
        count = 0 if router is None else router.shape[0]
        told = self._tenp.get("expert_widths")
        if isinstance(told, list):
            place = config.moe_layers.index(layer) * count
            return tuple(int(width) for width in told[place : place + count])
        merged = self._stored.get(merged_name(layer, "up"))
        return (merged.shape[1],) * count if merged is not None else ()

    def _check(self) -> None:
        for spec in self.tensors.values():
            grows = not any(is_transformed(self.config, role) for role in file_roles(spec.role))
            for name, shape in self._parts(spec).items():
                stored = self._stored.get(name)
                if stored is None and 0 in shape:
                    continue
                if stored is None:
                    raise UserError(f"{self.file.name} has no tensor {name}")
                if stored.kind not in _BY_ID:
                    number = gguf.GGMLQuantizationType(stored.kind).name
                    raise UserError(f"{self.file.name}: {name} is {number}, which is not read here")
                actual = stored.shape[-len(shape) :]
                if actual != shape and not (grows and _holds(actual, shape)):
                    expected = f"{shape} or more" if grows else f"{shape}"
                    raise UserError(
                        f"{self.file.name}: {name} is {actual}, {expected} was expected"
                    )

    def _parts(self, spec: TensorSpec) -> dict[str, Shape]:
        """The file's tensors that ``spec`` is read from, and the shape that each has at least."""
        if spec.expert is None:
            whole = torch.empty(spec.shape, device="meta")
            return {
                tensor_name(self.config, role, spec.layer): tuple(
                    to_file(self.config, role, whole).shape
                )
                for role in file_roles(spec.role)
            }
        assert spec.layer is not None
        part = spec.role.removeprefix("expert_")
        merged = merged_name(spec.layer, part)
        single = expert_name(spec.layer, spec.expert, part)
        return {merged if merged in self._stored else single: spec.shape}


class _Stored:
    """A tensor's place in the file; ``shape`` row-major."""

    def __init__(self, kind: int, shape: Shape, offset: int, nbytes: int) -> None:
        self.kind, self.shape, self.offset, self.nbytes = kind, shape, offset, nbytes

    @classmethod
    def of(cls, tensor: Any) -> _Stored:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        return cls(int(tensor.tensor_type), shape, int(tensor.data_offset), int(tensor.n_bytes))

    def read(self, file: Path) -> torch.Tensor:
        data = read_range(file, self.offset, self.nbytes)
        return _BY_ID[self.kind].decode(data, self.shape)

    def rows(self, file: Path, start: int, stop: int) -> torch.Tensor:
        row = _BY_ID[self.kind].nbytes(self.shape[-1:])
        data = read_range(file, self.offset + start * row, (stop - start) * row)
        return _BY_ID[self.kind].decode(data, (stop - start, self.shape[-1]))

    def held(self, file: Path) -> Rows:
        data, length = read_range(file, self.offset, self.nbytes), self.shape[-1]
        kind = _BY_ID[self.kind]
        row = kind.nbytes((length,))

        def rows(start: int, stop: int) -> torch.Tensor:
            return kind.decode(data[start * row : stop * row], (stop - start, length))

        return rows


def _holds(own: Shape, shape: Shape) -> bool:
    return len(own) == len(shape) and all(a >= b for a, b in zip(own, shape, strict=True))
