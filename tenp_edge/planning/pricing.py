"""What a plan costs: the manifest of the files it would become and the memory of their run."""

from __future__ import annotations

from dataclasses import dataclass

from tenp_edge.checkpoint.compression_plan import CompressionPlan, Widths
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import pruned_config
from tenp_edge.exporters.base import Manifest
from tenp_edge.models import ModelConfig
from tenp_edge.planning.memory_table import MemoryTable, memory_table
from tenp_edge.planning.target import Target
from tenp_edge.runtime.memory.footprint import RunMemory


@dataclass(frozen=True)
class Priced:
    """Widths with the manifest and the memory they cost."""

    widths: Widths
    full_width: int
    config: ModelConfig
    manifest: Manifest
    memory: MemoryTable

    @property
    def keep_ratio(self) -> float:
        """rho: share of the routed-expert neurons that stay."""
        kept = sum(map(sum, self.widths.values()))
        return kept / (self.full_width * sum(map(len, self.widths.values())))


class Pricer:
    """Prices widths for one checkpoint and target, each manifest once.

    The weights are exact; what the run takes besides is estimated, or, once `confirm` was called,
    what the runtime answered last: it hardly changes from plan to plan.
    """

    def __init__(
        self, checkpoint: Checkpoint, target: Target, answer: RunMemory | None = None
    ) -> None:
        self.checkpoint, self.target = checkpoint, target
        self.answer = answer
        self._known: dict[tuple[tuple[int, ...], ...], tuple[ModelConfig, Manifest]] = {}

    def __call__(self, widths: Widths) -> Priced:
        target, (config, manifest) = self.target, self._manifest(widths)
        table = memory_table(
            config, manifest, target.profile, target.run, target.budget_bytes, self.answer
        )
        return Priced(widths, self.checkpoint.config.moe_intermediate_size, config, manifest, table)

    def confirm(self, widths: Widths) -> Priced:
        """The price with the runtime's own answer for this very plan, where it can be asked."""
        target, (config, _) = self.target, self._manifest(widths)
        memory = target.exporter.run_memory(self.checkpoint, config, target.options, target.run)
        self.answer = memory or self.answer
        return self(widths)

    def _manifest(self, widths: Widths) -> tuple[ModelConfig, Manifest]:
        key = tuple(widths.values())
        if key not in self._known:
            target = self.target
            config = pruned_config(self.checkpoint.config, draft(self.checkpoint, widths))
            manifest = target.exporter.manifest(self.checkpoint, config, target.options)
            self._known[key] = config, manifest
        return self._known[key]


def draft(checkpoint: Checkpoint, widths: Widths) -> CompressionPlan:
    """A plan of bytes alone."""
    return CompressionPlan(
        model_type=checkpoint.config.family.model_type,
        fingerprint=checkpoint.fingerprint,
        full_width=checkpoint.config.moe_intermediate_size,
        widths=widths,
    )
