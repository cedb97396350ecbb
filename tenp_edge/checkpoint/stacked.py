"""Experts as transformers stacks them: what a checkpoint holds that it reads in no other form.

    gate_up_proj (experts, 2 width, hidden), gate's rows first; down_proj (experts, hidden, width)

Stacking needs experts of one width. Where they have several, each has its own three matrices.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tenp_edge.checkpoint.files import TensorEntry
from tenp_edge.checkpoint.source import ModelSource

_GATE_UP, _DOWN = "gate_up_proj", "down_proj"


class StackedExperts:
    """The stacked tensors of ``source``, none where its family's experts are written one by one."""

    def __init__(self, source: ModelSource) -> None:
        config, self._source = source.config, source
        self._places: dict[str, tuple[int, str]] = {}
        if config.family.stacked and config.is_uniform:
            for layer in config.expert_widths:
                prefix = config.moe_prefix(layer) + "experts."
                self._places |= {prefix + name: (layer, name) for name in (_GATE_UP, _DOWN)}

    def __contains__(self, name: object) -> bool:
        return name in self._places

    @property
    def any(self) -> bool:
        return bool(self._places)

    def entries(self, layer: int) -> Iterator[TensorEntry]:
        """Of one layer, in file order."""
        config = self._source.config
        row, hidden = config.expert_widths[layer], config.hidden_size
        shapes = {
            _GATE_UP: (len(row), 2 * row[0], hidden),
            _DOWN: (len(row), hidden, row[0]),
        }
        dtype = self._source.dtype(config.expert_tensor(layer, 0, 0))
        for name, (tensor_layer, kind) in self._places.items():
            if tensor_layer == layer:
                yield TensorEntry(name, dtype, shapes[kind])

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Tensor ``name``, one expert at a time."""
        layer, kind = self._places[name]
        for expert in range(len(self._source.config.expert_widths[layer])):
            weights = self._source.expert(layer, expert)
            gate_up = kind == _GATE_UP
            yield (torch.cat([weights.gate, weights.up]) if gate_up else weights.down)[None]
