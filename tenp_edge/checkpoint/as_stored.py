"""The quantised weights that a pruned checkpoint takes over as they are stored.

What is not cut stays as it is. Of a cut matrix the rows (gate, up) or columns (down) that stay are
taken without decoding where its layout lets them go (`stored.cutting`); else the numbers that they
mean are written. So one expert may be of both kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch

from tenp_edge.checkpoint.files import Checkpoint, TensorEntry, dtype_name
from tenp_edge.checkpoint.source import BLOCK_BYTES, ModelSource, check_finite
from tenp_edge.checkpoint.stored.cutting import Kept, cut_part, cut_part_shapes
from tenp_edge.models import TensorSpec
from tenp_edge.models.layouts import StoredWeight
from tenp_edge.models.mixers import Shape

_WEIGHT, _DOWN = ".weight", "down"
GATE_UP_STACK, DOWN_STACK = "gate_up_proj", "down_proj"


@dataclass(frozen=True)
class Piece:
    """A tensor of the written checkpoint, and what gives its rows in blocks."""

    entry: TensorEntry
    blocks: Callable[[], Iterator[torch.Tensor]]


@dataclass(frozen=True, eq=False)
class Cut:
    """Rows and columns of a quantised matrix; ``entry``: of stacked ones, which."""

    checkpoint: Checkpoint
    weight: StoredWeight
    entry: int | None = None
    rows: Kept = None
    columns: Kept = None

    @property
    def is_whole(self) -> bool:
        return self.rows is None and self.columns is None

    @property
    def module(self) -> str:
        return self.weight.name.removesuffix(_WEIGHT)

    @cached_property
    def shapes(self) -> Mapping[str, Shape] | None:
        """Of each part that is left; None where the layout does not let it go alone, or is of
        another kind of file (a GGUF's tensors have other names)."""
        if not all(name.startswith(self.module) for name in self.weight.tensors.values()):
            return None
        stored = {
            part: self.checkpoint.tensors[name].shape[0 if self.entry is None else 1 :]
            for part, name in self.weight.tensors.items()
        }
        if self.is_whole:
            return stored
        if self.weight.transposed:
            return None
        shape, layout = self.weight.shape[-2:], self.weight.layout
        return cut_part_shapes(layout, shape, stored, self.rows, self.columns)

    def read(self, part: str) -> torch.Tensor:
        """What is left of ``part``. Raises UserError for scales that are not finite."""
        name = self.weight.tensors[part]
        if self.entry is None:
            tensor = self.checkpoint.stored(name)
        else:
            tensor = self.checkpoint.stored(name, self.entry, self.entry + 1)[0]
        _check_scale(name, part, tensor)
        if self.is_whole:
            return tensor
        rule = self.weight.layout.rules(self.weight.shape[-2:])[part]
        return cut_part(part, tensor, rule, self.rows, self.columns)

    def blocks(self, part: str) -> Iterator[torch.Tensor]:
        """The same, a matrix that is large to hold in blocks of rows."""
        name = self.weight.tensors[part]
        stored = self.checkpoint.tensors[name]
        if not self.is_whole or self.entry is not None or stored.nbytes <= BLOCK_BYTES:
            yield self.read(part)
            return
        rows = stored.shape[0]
        step = max(1, BLOCK_BYTES * rows // stored.nbytes)
        for start in range(0, rows, step):
            block = self.checkpoint.stored(name, start, min(start + step, rows))
            _check_scale(name, part, block)
            yield block

    def entries(self, module: str, *, unstacked: bool = False) -> dict[str, TensorEntry]:
        """The tensor that each part becomes for the weight of ``module``; ``unstacked``: of one of
        the stacked matrices alone, under the names that the layout's publisher gives such."""
        rules = self.weight.rules
        return {
            part: TensorEntry(
                module + (rules[part].suffixes[0] if unstacked else name.removeprefix(self.module)),
                self.checkpoint.tensors[name].dtype,
                (self.shapes or {})[part],
            )
            for part, name in self.weight.tensors.items()
        }


def _check_scale(name: str, part: str, tensor: torch.Tensor) -> None:
    if part != "codes" and tensor.is_floating_point():
        check_finite(name, tensor.float())


class AsStored:
    """Of ``source``, what is written as it is stored: nothing unless ``dtype`` is "source"."""

    def __init__(self, source: ModelSource, dtype: str) -> None:
        self._source, self._checkpoint = source, source.checkpoint
        self._is_wanted = dtype == "source" and any(
            not weight.is_plain for weight in self._checkpoint.weights.values()
        )

    def pieces(self, spec: TensorSpec) -> list[Piece]:
        """What the weight ``spec`` of the pruned model is written as; none where that is numbers.

        What lies beside it for runtimes that compute in its layout, scales of activations, comes
        along where it is not of a row each.
        """
        cut = self._cuts.get(spec.name)
        if cut is None:
            return []
        module, stacked = spec.name.removesuffix(_WEIGHT), cut.entry is not None
        entries = cut.entries(module, unstacked=stacked)
        pieces = [Piece(entry, partial(cut.blocks, part)) for part, entry in entries.items()]
        return pieces if stacked else [*pieces, *self._beside(cut, module)]

    def _beside(self, cut: Cut, module: str) -> Iterator[Piece]:
        for name in self._needless.get(cut.module, ()):
            stored = self._checkpoint.tensors[name]
            if cut.is_whole or stored.shape in ((), (1,)):
                entry = TensorEntry(
                    module + name.removeprefix(cut.module), stored.dtype, stored.shape
                )
                yield Piece(entry, partial(self._stored, name))

    def _stored(self, name: str) -> Iterator[torch.Tensor]:
        yield self._checkpoint.stored(name)

    @property
    def any(self) -> bool:
        return bool(self._cuts)

    @property
    def has_experts(self) -> bool:
        """Whether a routed expert's matrix is among them."""
        return any(self._source.tensors[name].expert is not None for name in self._cuts)

    @cached_property
    def unquantised(self) -> list[str]:
        """The modules whose weights are quantised in the source and are written as numbers."""
        return [
            spec.name.removesuffix(_WEIGHT)
            for spec in self._source.tensors.values()
            if spec.name not in self._cuts and self._cut(spec) is not None
        ]

    @property
    def text(self) -> str:
        """'Quantised as in the source: 12 of 18 matrices (INT4, groups of 32); 6 in BF16'."""
        kept, others = self._cuts.values(), self.unquantised
        titles = sorted({cut.weight.layout.title for cut in kept})
        whole = f"Quantised as in the source: {len(kept)} of {len(kept) + len(others)} matrices"
        rest = f"; {len(others)} in {dtype_name(self._checkpoint.dtype)}" if others else ""
        return f"{whole} ({' and '.join(titles)}){rest}"

    @cached_property
    def stacks(self) -> Mapping[tuple[int, str], list[Cut]]:
        """By layer and kind, the stacked experts: none unless all of the model can be stacked."""
        stacks: dict[tuple[int, str], list[Cut]] = {}
        for layer, row in self._source.config.expert_widths.items() if self._is_wanted else ():
            for kind in (GATE_UP_STACK, DOWN_STACK):
                cuts = [self._stack_cut(layer, expert, kind) for expert in range(len(row))]
                stacks[layer, kind] = [cut for cut in cuts if cut is not None and cut.shapes]
                if len(stacks[layer, kind]) < len(row):
                    return {}
        return stacks

    # -- which rows and columns ------------------------------------------------------------------

    @cached_property
    def _cuts(self) -> Mapping[str, Cut]:
        if not self._is_wanted:
            return {}
        found = {spec.name: self._cut(spec) for spec in self._source.tensors.values()}
        return {
            name: cut
            for name, cut in found.items()
            if cut is not None and cut.shapes and not self._is_mended(name)
        }

    def _is_mended(self, name: str) -> bool:
        return self._source.mended is not None and name in self._source.mended

    def _cut(self, spec: TensorSpec) -> Cut | None:
        """Of a weight that is quantised in the source."""
        if spec.layer is not None and spec.expert is not None:
            return self._expert_cut(spec.layer, spec.expert, spec.role.removeprefix("expert_"))
        weight = self._checkpoint.weights[spec.name]
        rows = self._remaining_experts(spec.layer) if spec.part == "router" else None
        return None if weight.is_plain else Cut(self._checkpoint, weight, rows=rows)

    def _remaining_experts(self, layer: int | None) -> Kept:
        """The experts that are left, of the source's; None: all."""
        assert layer is not None
        count = self._source.config.num_experts
        if count == self._checkpoint.config.num_experts:
            return None
        return torch.tensor([self._source.original_expert(layer, e) for e in range(count)])

    def _expert_cut(self, layer: int, expert: int, part: str) -> Cut | None:
        """Of the tensor ``part`` of an expert, as `ModelConfig.expert_parts` names it."""
        original, config = self._source.original_expert(layer, expert), self._checkpoint.config
        if layer in self._checkpoint.stacked:
            return self._unstacked_cut(layer, original, part)
        parts = config.parts_of(layer, original)
        if part not in parts:
            return None  # A constant that the plan makes.
        names = dict(zip(parts, config.expert_tensors(layer, original), strict=True))
        weight, neurons = self._checkpoint.weights[names[part]], self._neurons(layer, original)
        if weight.is_plain:
            return None
        rows, columns = (None, neurons) if part == _DOWN else (neurons, None)
        return Cut(self._checkpoint, weight, rows=rows, columns=columns)

    def _unstacked_cut(self, layer: int, original: int, part: str) -> Cut | None:
        """Of stacked matrices, one alone: gate and up are halves of theirs."""
        cut, config = self._of_stack(layer, original, part == _DOWN), self._checkpoint.config
        if cut is None or cut.weight.transposed or part not in config.family.matrices:
            return None
        if part == _DOWN:
            return cut
        rows = self._rows(layer, self._neurons(layer, original))[0 if part == "gate" else -1]
        return replace(cut, rows=rows)

    def _stack_cut(self, layer: int, expert: int, kind: str) -> Cut | None:
        """Of stacked matrices that stay stacked: gate's and up's rows in one."""
        matrices = self._source.config.expert_tensors(layer, expert)
        if layer not in self._checkpoint.stacked or any(map(self._is_mended, matrices)):
            return None
        original = self._source.original_expert(layer, expert)
        cut = self._of_stack(layer, original, kind == DOWN_STACK)
        neurons = self._neurons(layer, original)
        if cut is None or kind == DOWN_STACK or neurons is None:
            return cut
        parts = self._rows(layer, neurons)
        interleaved = self._checkpoint.stacked[layer].interleaved
        rows = torch.stack(parts, 1).flatten() if interleaved else torch.cat(parts)
        return replace(cut, rows=rows)

    def _of_stack(self, layer: int, original: int, down: bool) -> Cut | None:
        """An expert's entry of the stacked gate and up, all of its rows, or of the stacked ``down``
        the columns that stay; None of numbers."""
        stacked = self._checkpoint.stacked[layer]
        weight = stacked.down if down else stacked.gate_up
        columns = self._neurons(layer, original) if down else None
        return None if weight.is_plain else Cut(self._checkpoint, weight, original, columns=columns)

    def _rows(self, layer: int, neurons: Kept) -> list[torch.Tensor]:
        """Where in the stacked matrix the rows of gate (if there is one) and of up are."""
        stacked = self._checkpoint.stacked[layer]
        width = stacked.gate_up.shape[1] // (2 if stacked.gated else 1)
        kept = torch.arange(width) if neurons is None else neurons
        if not stacked.gated:
            return [kept]
        return [2 * kept, 2 * kept + 1] if stacked.interleaved else [kept, kept + width]

    def _neurons(self, layer: int, original: int) -> Kept:
        """The neurons that an expert of the source keeps; None: all. Where the plan does not say
        which, such that lie as unfavourably as they can."""
        plan = self._source.plan
        if plan is None or plan.widths[layer][original] == plan.full_width:
            return None
        if plan.retained is None:
            return torch.arange(1, plan.widths[layer][original] + 1)
        return plan.neurons(layer, original).long()

    @cached_property
    def _needless(self) -> Mapping[str, list[str]]:
        """Tensors beside quantised weights that change nothing in them, by module."""
        by_module: dict[str, list[str]] = {}
        for name in sorted(self._checkpoint.needless):
            by_module.setdefault(name.rpartition(".")[0], []).append(name)
        return by_module
