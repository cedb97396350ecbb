"""What a byte budget is, and what a way makes of one: a plan, its types, an exact file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.overlay import Mended
from tenp_edge.checkpoint.source import pruned_config
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import Exporter, ExportOptions, Manifest

# From almost no loss to hardly a model: llama.cpp's mixes, the largest first.
BUDGETS = (
    "Q6_K",
    "Q5_K_M",
    "Q4_K_M",
    "IQ4_XS",
    "Q3_K_M",
    "IQ3_XXS",
    "Q2_K",
    "IQ2_M",
    "IQ2_XXS",
    "IQ1_M",
)


@dataclass(frozen=True)
class Budget:
    """``file_bytes`` of the whole model in each of ``names``: more than one where rows are too
    short for the types' blocks, so that several fall back to one. ``type``: what most of the
    experts' bytes then are."""

    names: tuple[str, ...]
    file_bytes: int
    type: str

    @property
    def name(self) -> str:
        return " = ".join(self.names)


@dataclass(frozen=True)
class Filled:
    """A file within a budget. ``plan``: None is the whole model; ``predicted_kl``: nats per token,
    where it was predicted; ``mended``: weights that were changed after the cut."""

    plan: CompressionPlan | None
    options: ExportOptions
    manifest: Manifest
    predicted_kl: float | None = None
    mended: Mended | None = None

    @property
    def file_bytes(self) -> int:
        return self.manifest.file_bytes

    @property
    def expert_bytes(self) -> int:
        """Of the routed experts' matrices."""
        return sum(tensor.nbytes for tensor in self.manifest.tensors if tensor.part != "other")

    @property
    def keep_ratio(self) -> float:
        return 1.0 if self.plan is None else self.plan.keep_ratio

    @cached_property
    def key(self) -> str:
        """Equal for files of equal weights: whatever they were asked for as."""
        types = [(t.name, t.type) for t in self.manifest.tensors if t.part == "other"]
        types += [(t.name, t.type) for t in self.manifest.tensors if t.part != "other"]
        plan = None if self.plan is None else self.plan.digest
        mended = None if self.mended is None else self.mended.digest
        state = json.dumps([plan, mended, self.options.imatrix, types])
        return hashlib.sha256(state.encode()).hexdigest()[:32]

    @property
    def commonest_type(self) -> str:
        """The type of most bytes of the routed experts."""
        sizes: dict[str, int] = {}
        for tensor in self.manifest.tensors:
            if tensor.part != "other":
                sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.nbytes
        return max(sizes, key=sizes.__getitem__)

    @property
    def type_count(self) -> int:
        """How many types the routed experts have."""
        return len({tensor.type for tensor in self.manifest.tensors if tensor.part != "other"})


def file_options(writer: Exporter, quant: str, layout: str) -> ExportOptions:
    """A file in ``quant``, with an importance matrix where that is of use."""
    return ExportOptions(quant, layout, imatrix=quant in writer.weighted_quants)


def whole(checkpoint: Checkpoint, writer: Exporter, quant: str) -> Filled:
    """The whole model in ``quant``, as anybody's quantiser would write it."""
    config = checkpoint.config
    layout = "merged" if "merged" in writer.layouts and config.is_uniform else writer.layouts[0]
    options = file_options(writer, quant, layout)
    return Filled(None, options, writer.manifest(checkpoint, config, options))


def filled(
    checkpoint: Checkpoint,
    writer: Exporter,
    plan: CompressionPlan,
    options: ExportOptions,
    predicted_kl: float | None = None,
) -> Filled:
    """``plan`` as a file of ``options``, or of its own types where it names them."""
    config, options = pruned_config(checkpoint.config, plan), options.typed(plan.file_types)
    return Filled(plan, options, writer.manifest(checkpoint, config, options), predicted_kl)


def budgets_of(
    checkpoint: Checkpoint, writer: Exporter, names: Sequence[str] = BUDGETS
) -> list[Budget]:
    """The budgets called ``names``, the largest first; equal ones are one.

    Raises UserError for a name that is no type of the format.
    """
    sizes: dict[int, list[str]] = {}
    types: dict[int, str] = {}
    for name in names:
        if name not in writer.quants:
            raise UserError(f"--budget {name} is not known", f"--budget {'|'.join(BUDGETS)}")
        file = whole(checkpoint, writer, name)
        sizes.setdefault(file.file_bytes, []).append(name)
        types.setdefault(file.file_bytes, file.commonest_type)
    return [Budget(tuple(sizes[size]), size, types[size]) for size in sorted(sizes, reverse=True)]
