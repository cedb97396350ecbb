"""Checkpoints that are a file of another format (GGUF), opened by whoever knows the format.

The formats are those that are installed as exporters: one that can also be read says so with
`SourceFormat`. They are found by entry point, as everywhere, so nothing here names one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol, runtime_checkable

from tenp_edge.models.layouts import StoredWeight
from tenp_edge.models.model_config import ModelConfig
from tenp_edge.models.safetensors_header import StoredTensor
from tenp_edge.models.stored_weights import StackedExperts


@dataclass(frozen=True)
class OpenedSource:
    """What a file holds. ``config``: of its model, as its config.json would be read. ``tensors``:
    where every tensor lies, stacked experts one by one. ``weights``: every weight of the model."""

    config: ModelConfig
    tensors: Mapping[str, StoredTensor]
    weights: Mapping[str, StoredWeight]

    # As `stored_weights.WeightIndex` says it of a directory.
    needless = not_understood = frozenset[str]()

    @property
    def stacked(self) -> Mapping[int, StackedExperts]:
        return {}

    @cached_property
    def unclaimed(self) -> frozenset[str]:
        """Tensors that are a part of no weight: of layers that predict further tokens."""
        claimed = {t for weight in self.weights.values() for t in weight.tensors.values()}
        return frozenset(name for name in self.tensors if name not in claimed)


@runtime_checkable
class SourceFormat(Protocol):
    """What an exporter may also be: one whose files are models to start from."""

    def open_source(self, path: Path) -> OpenedSource | None:
        """The model in the file ``path``; None where it is of another format. Raises UserError for
        one of this format that cannot be used."""
        ...


def open_file(path: Path) -> OpenedSource | None:
    """The model in the file ``path``, of any format that can be read; None of none."""
    for point in entry_points(group="tenp_edge.exporters"):
        writer = point.load()
        opened = writer.open_source(path) if isinstance(writer, SourceFormat) else None
        if opened is not None:
            return opened
    return None
