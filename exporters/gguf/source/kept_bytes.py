"""``--quant keep``: every tensor in the type that the source has it in, and its very bytes where
the cut leaves whole blocks of them.

    outside the experts    the tensor's bytes
    gate, up               the bytes of the rows that stay
    down                   the bytes of the blocks that stay, where neurons were cut in whole blocks
    anything else          decoded, and encoded in that type again
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from tenp_edge.checkpoint.files import Checkpoint, tensor_bytes
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.disk import read_range
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ManifestTensor
from tenp_edge.exporters.gguf.source.parts import open_parts
from tenp_edge.exporters.gguf.types import TYPES
from tenp_edge.models.layouts import StoredWeight

if TYPE_CHECKING:  # which asks here for types
    from tenp_edge.exporters.gguf.layout import Entry

_BLOCK_BYTES = 32 * 2**20
_DOWN = "down"


class SourceTypes:
    """The ggml types of the source's tensors, by the names of what is written."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Raises UserError where the model is no GGUF."""
        if not checkpoint.is_file:
            raise UserError(
                f"--quant keep keeps the types of a GGUF, {checkpoint.path} is a checkpoint",
                "--quant Q8_0, or a GGUF as the model",
            )
        self._checkpoint = checkpoint
        self._types = {
            name: placed.info.type_name
            for name, placed in open_parts(checkpoint.path).tensors.items()
        }

    def of(self, name: str, role: str, layer: int | None) -> str | None:
        """The type of the tensor ``name`` of the file; of experts, of their first one's part; None
        of a tensor that the source has not got. Raises UserError for one that cannot be written."""
        kind = self._types.get(name) if layer is None else self._of_layer(name, role, layer)
        if kind is not None and kind not in TYPES:
            raise UserError(
                f"--quant keep: {name} is {kind} in {self._checkpoint.path.name}, which can only "
                "be read",
                "another --quant",
            )
        return kind

    def _of_layer(self, name: str, role: str, layer: int) -> str | None:
        projection, _, bias = role.removeprefix("expert_").partition("_")
        if not role.startswith("expert_") or bias:
            return self._types.get(name)
        config = self._checkpoint.config
        index = config.family.matrices.index(projection)
        return self._stored(self._checkpoint.weights[config.expert_tensor(layer, 0, index)])

    def _stored(self, weight: StoredWeight) -> str:
        return self._checkpoint.tensors[next(iter(weight.tensors.values()))].dtype


class KeptBytes:
    """The bytes of ``source``'s tensors that can be moved as they are."""

    def __init__(self, source: ModelSource) -> None:
        self._source, self._checkpoint = source, source.checkpoint
        self._placed = open_parts(source.checkpoint.path).tensors

    def require_no_importance(self, found: Sequence[Entry]) -> None:
        """Raise UserError where a type must be encoded anew that needs an importance matrix."""
        plan = self._source.plan
        for entry in found if plan else ():
            kind = TYPES[entry.tensor.type]
            if entry.role == "expert_down" and kind.needs_importance:
                assert plan is not None and entry.layer is not None
                experts = range(len(self._source.config.expert_widths[entry.layer]))
                for expert in experts if entry.expert is None else (entry.expert,):
                    original = self._source.original_expert(entry.layer, expert)
                    neurons = plan.neurons(entry.layer, original)
                    if _whole_blocks(neurons, kind.block) is None:
                        raise _needs_importance(entry, kind.name)

    def has(self, tensor: ManifestTensor, name: str | None) -> bool:
        """Whether a tensor outside the routed experts is the source's, unchanged. ``name``: Hugging
        Face's, None of what is computed."""
        placed = self._placed.get(tensor.name)
        changed = name is not None and self._source.changes(name)
        if placed is None or changed:
            return False
        return (placed.info.type_name, placed.info.nbytes) == (tensor.type, tensor.nbytes)

    def plain(self, tensor: ManifestTensor) -> Iterator[memoryview]:
        """All bytes of such a tensor, in pieces."""
        placed = self._placed[tensor.name]
        for start in range(0, tensor.nbytes, _BLOCK_BYTES):
            count = min(_BLOCK_BYTES, tensor.nbytes - start)
            yield memoryview(read_range(placed.file, placed.info.offset + start, count))

    def expert(
        self, layer: int, expert: int, part: str, tensor: ManifestTensor
    ) -> memoryview | None:
        """One part of one expert of the pruned model: the rows or blocks that stay; None where it
        must be encoded anew."""
        projection, _, bias = part.partition("_")
        source, config = self._source, self._checkpoint.config
        original = source.original_expert(layer, expert)
        index = config.family.matrices.index(projection)
        if bias or source.changes(source.config.expert_tensor(layer, expert, index)):
            return None
        weight = self._checkpoint.weights[config.expert_tensor(layer, original, index)]
        (name,) = weight.tensors.values()
        if self._checkpoint.tensors[name].dtype != tensor.type:
            return None
        kept = None if source.plan is None else source.plan.neurons(layer, original)
        rows = self._checkpoint.stored(name)
        if kept is not None and len(kept) < weight.shape[projection == _DOWN]:
            cut = _columns(rows, kept, tensor.type) if projection == _DOWN else rows[kept]
            if cut is None:
                return None
            rows = cut
        width = rows.shape[-1] * rows.element_size()
        same = width == TYPES[tensor.type].nbytes(tensor.shape[-1:])
        return tensor_bytes(rows) if same else None


def _columns(rows: torch.Tensor, neurons: torch.Tensor, kind: str) -> torch.Tensor | None:
    """The columns ``neurons`` of ``rows``; None where they are not whole blocks of ``kind``."""
    numbers = _whole_blocks(neurons, TYPES[kind].block)
    if numbers is None:
        return None
    if TYPES[kind].block == 1:
        return rows[:, neurons]
    return rows.reshape(len(rows), -1, TYPES[kind].block_bytes)[:, numbers].flatten(1)


def _whole_blocks(neurons: torch.Tensor, size: int) -> torch.Tensor | None:
    """The numbers of the aligned blocks of ``size`` that ``neurons``, ascending, are; or None."""
    if len(neurons) % size:
        return None
    groups = neurons.reshape(-1, size).long()
    first = groups[:, :1]
    aligned = not bool((first % size).any()) and torch.equal(groups, first + torch.arange(size))
    return first[:, 0] // size if aligned else None


def _needs_importance(entry: Entry, kind: str) -> UserError:
    return UserError(
        f"--quant keep: {entry.tensor.name} is {kind}, which cannot be quantised again without an "
        "importance matrix",
        "--calibration WORK (tenp-edge calibrate MODEL -o WORK) "
        "without --no-imatrix, or plan --set down=blocks",
    )
