"""What a plan costs: the manifest of the files it would become and the memory of their run."""

from __future__ import annotations

from dataclasses import dataclass

from tenp_edge.checkpoint.compression_plan import CompressionPlan, ExpertKey, Widths
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import pruned_config
from tenp_edge.checkpoint.tensor_types import TensorTypes
from tenp_edge.exporters.base import Manifest
from tenp_edge.models import ModelConfig
from tenp_edge.planning.memory.table import MemoryTable, memory_table
from tenp_edge.planning.options.target import Target
from tenp_edge.runtime.memory.footprint import RunMemory

Constants = frozenset[ExpertKey]
NO_CONSTANTS: Constants = frozenset()


@dataclass(frozen=True)
class Priced:
    """Widths, and types and constants where there are some, with the manifest and the memory they
    cost."""

    widths: Widths
    full_width: int
    config: ModelConfig
    manifest: Manifest
    memory: MemoryTable
    types: TensorTypes | None = None
    constants: Constants = NO_CONSTANTS

    @property
    def keep_ratio(self) -> float:
        """rho: share of the routed-expert neurons that stay."""
        kept = sum(map(sum, self.widths.values()))
        return kept / (self.full_width * sum(map(len, self.widths.values())))


class Pricer:
    """Prices widths (and types of every tensor) for one checkpoint and target, each manifest once.

    ``keeps_places``: as in a plan, where a width may be 0. ``types`` and ``constants`` go by the
    experts of the source model, as in a plan. The weights are exact; what the run takes besides is
    estimated, or, once `confirm` was called, what the runtime answered last: it hardly changes from
    plan to plan.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        target: Target,
        answer: RunMemory | None = None,
        *,
        keeps_places: bool = False,
    ) -> None:
        self.checkpoint, self.target = checkpoint, target
        self.answer, self.keeps_places = answer, keeps_places
        self._known: dict[_Key, tuple[ModelConfig, Manifest]] = {}

    def __call__(
        self,
        widths: Widths,
        types: TensorTypes | None = None,
        constants: Constants = NO_CONSTANTS,
    ) -> Priced:
        target, (config, manifest) = self.target, self._manifest(widths, types, constants)
        table = memory_table(
            config, manifest, target.profile, target.run, target.budget_bytes, self.answer
        )
        full = self.checkpoint.config.moe_intermediate_size
        return Priced(widths, full, config, manifest, table, types, constants)

    def confirm(
        self,
        widths: Widths,
        types: TensorTypes | None = None,
        constants: Constants = NO_CONSTANTS,
    ) -> Priced:
        """The price with the runtime's own answer for this very plan, where it can be asked."""
        target, (config, _) = self.target, self._manifest(widths, types, constants)
        options = target.options.typed(self._draft(widths, types, constants).file_types)
        memory = target.exporter.run_memory(self.checkpoint, config, options, target.run)
        self.answer = memory or self.answer
        return self(widths, types, constants)

    def _manifest(
        self, widths: Widths, types: TensorTypes | None, constants: Constants
    ) -> tuple[ModelConfig, Manifest]:
        key = tuple(widths.values()), None if types is None else _key(types), constants
        if key not in self._known:
            plan = self._draft(widths, types, constants)
            options = self.target.options.typed(plan.file_types)
            config = pruned_config(self.checkpoint.config, plan)
            manifest = self.target.exporter.manifest(self.checkpoint, config, options)
            self._known[key] = config, manifest
        return self._known[key]

    def _draft(
        self, widths: Widths, types: TensorTypes | None, constants: Constants
    ) -> CompressionPlan:
        places = self.keeps_places
        return draft(self.checkpoint, widths, types, constants, keeps_places=places)


_Key = tuple[tuple[tuple[int, ...], ...], tuple[object, ...] | None, Constants]


def _key(types: TensorTypes) -> tuple[object, ...]:
    rows = (*types.gate_up.values(), *types.down.values())
    return (*rows, *sorted(types.others.items()))


def draft(
    checkpoint: Checkpoint,
    widths: Widths,
    types: TensorTypes | None = None,
    constants: Constants = NO_CONSTANTS,
    *,
    keeps_places: bool = False,
) -> CompressionPlan:
    """A plan of bytes alone. ``keeps_places``: where a width is 0, the expert keeps its place."""
    empty = any(0 in row for row in widths.values())
    return CompressionPlan(
        model_type=checkpoint.config.family.model_type,
        fingerprint=checkpoint.fingerprint,
        full_width=checkpoint.config.moe_intermediate_size,
        widths=widths,
        types=types,
        keeps_places=keeps_places and empty,
        constants=constants,
    )
