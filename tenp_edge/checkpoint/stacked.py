"""Experts as transformers stacks them: what a checkpoint holds that it reads in no other form.

    gate_up_proj (experts, 2 width, hidden), gate's rows first; down_proj (experts, hidden, width)

The matrices may lie transposed, gate's and up's rows in turns, and biases beside them, as the
family's table says. Stacking needs experts of one width, all of them numbers or all as a quantised
source stores them (its stacks' parts then, in its orientation). Else each has its own matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from tenp_edge.checkpoint.as_stored import DOWN_STACK, GATE_UP_STACK, AsStored, Cut, Piece
from tenp_edge.checkpoint.files import TensorEntry
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.models import Family

_BIASES = (f"{GATE_UP_STACK}_bias", f"{DOWN_STACK}_bias")


class WrittenStacks:
    """The stacked tensors of ``source``, none where its family's experts are written one by one."""

    def __init__(self, source: ModelSource, as_stored: AsStored) -> None:
        config, self._source, self._stored = source.config, source, as_stored
        first, second = config.family.stacked_names
        names = {GATE_UP_STACK: first, DOWN_STACK: second}
        if config.family.expert_bias:
            names |= dict(zip(_BIASES, (f"{first}_bias", f"{second}_bias"), strict=True))
        self._places: dict[str, tuple[int, str]] = {}
        self._biases: dict[tuple[int, int, str], torch.Tensor] = {}
        alike = bool(as_stored.stacks) or not as_stored.has_experts
        if config.family.stacked and config.is_uniform and alike:
            for layer in config.expert_widths:
                prefix = config.moe_prefix(layer)
                self._places |= {prefix + name: (layer, kind) for kind, name in names.items()}

    @property
    def any(self) -> bool:
        return bool(self._places)

    def pieces(self, layer: int) -> Iterator[Piece]:
        """Of one layer, in file order."""
        for name, (tensor_layer, kind) in self._places.items():
            if tensor_layer != layer:
                continue
            cuts = self._stored.stacks.get((layer, kind))
            if cuts is None:
                yield Piece(self._entry(name, layer, kind), partial(self.blocks, name))
            else:
                yield from _stored_pieces(name, cuts)

    def _entry(self, name: str, layer: int, kind: str) -> TensorEntry:
        config = self._source.config
        row, hidden = config.expert_widths[layer], config.hidden_size
        rows, columns = (2 * row[0], hidden) if kind.startswith(GATE_UP_STACK) else (hidden, row[0])
        matrix = (columns, rows) if config.family.stacked_transposed else (rows, columns)
        biased = kind in _BIASES
        stored = (config.expert_bias if biased else config.expert_tensor)(layer, 0, 0)
        shape = (len(row), rows) if biased else (len(row), *matrix)
        return TensorEntry(name, self._source.dtype(stored), shape)

    def blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Tensor ``name`` in numbers, one expert at a time."""
        layer, kind = self._places[name]
        for expert in range(len(self._source.config.expert_widths[layer])):
            bias = self._biases.pop((layer, expert, kind), None)
            yield (self._part(layer, expert, kind) if bias is None else bias)[None]

    def _part(self, layer: int, expert: int, kind: str) -> torch.Tensor:
        """One expert's part of the tensor ``kind``. Its biases are kept until their turn comes:
        they are small, and the whole expert would be read and decoded for them once more."""
        weights, family = self._source.expert(layer, expert), self._source.config.family
        biases = _parts(weights.gate_bias, weights.up_bias, weights.down_bias, family)
        self._biases |= {(layer, expert, f"{name}_bias"): make() for name, make in biases.items()}
        if kind in _BIASES:
            return self._biases.pop((layer, expert, kind))
        matrix = _parts(weights.gate, weights.up, weights.down, family)[kind]()
        return matrix.T if family.stacked_transposed else matrix


def _stored_pieces(name: str, cuts: list[Cut]) -> Iterator[Piece]:
    """The parts of the stack ``name`` as the source stores it."""
    for part, entry in cuts[0].entries(name.removesuffix(".weight")).items():
        whole = replace(entry, shape=(len(cuts), *entry.shape))
        yield Piece(whole, partial(_stored_blocks, cuts, part))


def _stored_blocks(cuts: list[Cut], part: str) -> Iterator[torch.Tensor]:
    return (cut.read(part)[None] for cut in cuts)


def _parts(
    gate: torch.Tensor | None, up: torch.Tensor | None, down: torch.Tensor | None, family: Family
) -> dict[str, Callable[[], torch.Tensor]]:
    """What is made of an expert's matrices, or of its biases, by name; none of none."""
    if gate is None or up is None or down is None:
        return {}
    if family.gate_up_interleaved:
        return {
            GATE_UP_STACK: lambda: torch.stack([gate, up], 1).flatten(0, 1),
            DOWN_STACK: lambda: down,
        }
    return {GATE_UP_STACK: lambda: torch.cat([gate, up]), DOWN_STACK: lambda: down}
