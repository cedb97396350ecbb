"""The contract of exporters that give every tensor a type of its own, as a plan chose them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch

from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.tensor_types import TensorTypes
from tenp_edge.exporters.base import ExportData, ExportOptions
from tenp_edge.models import ModelConfig


@dataclass(frozen=True)
class TypedMatrix:
    """A matrix outside the routed experts whose type may be chosen: its key in
    `TensorTypes.others`, where it sits, and its row-major shape in the file."""

    key: str
    layer: int | None
    role: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SampledRows:
    """Some rows of a matrix, [n, columns], and the importance of its columns, [columns] (None: of
    all alike)."""

    rows: torch.Tensor
    importance: torch.Tensor | None


@dataclass(frozen=True)
class LayoutRules:
    """What tensors may choose in the files of one layout.

    ``mixes``: types of their own at all. ``one_type``: all experts of a layer agree on theirs, as
    where they lie in one tensor. ``alike``: the matrices of one expert agree, and every pair of a
    width and a type takes nodes of its own, of which the widths' limit (`base.WidthLimits`) counts.
    ``holds_empty``: experts without neurons may keep their places, at no bytes. ``nodes_by_types``:
    what a run takes besides its weights depends on the types, as the number of nodes does.
    """

    mixes: bool = True
    one_type: bool = False
    alike: bool = False
    holds_empty: bool = False
    nodes_by_types: bool = False


@runtime_checkable
class Mixer(Protocol):
    """What an exporter may also be: one that gives every tensor the type that `ExportOptions.types`
    says. ``mixed_types``: what it can be told there, the most precise first; that one rounds
    nothing. ``probed_quant``: whose encoding speed stands for all of them.

    The weights of a file of other types differ by the `tensor_bytes` of its matrices alone, so that
    combinations are priced without a manifest.
    """

    mixed_types: tuple[str, ...]
    probed_quant: str

    def legal_type(self, type: str, columns: int) -> str:
        """``type``, or what a matrix of rows of ``columns`` takes instead."""
        ...

    def tensor_bytes(self, rows: int, columns: int, type: str) -> int:
        """What a matrix takes in the file, in the type that its rows allow, alignment included."""
        ...

    def needs_importance(self, type: str) -> bool:
        """Whether ``type`` is refused without an importance matrix."""
        ...

    def rules(self, layout: str) -> LayoutRules:
        """What ``layout`` lets tensors choose."""
        ...

    def constant_bytes(self, hidden: int) -> int:
        """What the constant of an expert without neurons takes beside them."""
        ...

    def typed_matrices(
        self, config: ModelConfig, options: ExportOptions
    ) -> tuple[TypedMatrix, ...]:
        """All that `TensorTypes.others` must name; the types in ``options`` do not matter."""
        ...

    def types_of(self, config: ModelConfig, options: ExportOptions) -> TensorTypes:
        """The types that ``options.quant`` means, whatever the layout: a mix to start from."""
        ...

    def rounded(self, sample: SampledRows, type: str) -> torch.Tensor:
        """The rows as ``type`` stores them, float32; their length must be whole blocks."""
        ...

    def sampled_matrices(
        self, source: ModelSource, options: ExportOptions, data: ExportData, rows: int
    ) -> Iterator[tuple[TypedMatrix, SampledRows]]:
        """About ``rows`` rows, spread, of each of `typed_matrices`."""
        ...
