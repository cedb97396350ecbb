"""What a plan costs: the manifest of the files it would become and the memory of their run."""

from __future__ import annotations

from dataclasses import dataclass

from tenp_edge.checkpoint import Checkpoint
from tenp_edge.memory import MemoryTable, memory_table
from tenp_edge.models import ModelConfig
from tenp_edge.plan import CompressionPlan, Widths
from tenp_edge.registry import Manifest
from tenp_edge.request import Target
from tenp_edge.source import pruned_config


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
    """Prices widths for one checkpoint and target, each plan once."""

    def __init__(self, checkpoint: Checkpoint, target: Target) -> None:
        self.checkpoint, self.target = checkpoint, target
        self._known: dict[tuple[tuple[int, ...], ...], Priced] = {}

    def __call__(self, widths: Widths) -> Priced:
        key = tuple(widths.values())
        if key not in self._known:
            self._known[key] = self._price(widths)
        return self._known[key]

    def _price(self, widths: Widths) -> Priced:
        target = self.target
        config = pruned_config(self.checkpoint.config, draft(self.checkpoint, widths))
        manifest = target.exporter.manifest(self.checkpoint, config, target.options)
        table = memory_table(
            config,
            manifest,
            target.profile,
            target.context,
            target.kv_type,
            target.ubatch,
            target.budget_bytes,
        )
        full = self.checkpoint.config.moe_intermediate_size
        return Priced(widths, full, config, manifest, table)


def draft(checkpoint: Checkpoint, widths: Widths) -> CompressionPlan:
    """A plan of bytes alone."""
    return CompressionPlan(
        model_type=checkpoint.config.family.model_type,
        fingerprint=checkpoint.fingerprint,
        full_width=checkpoint.config.moe_intermediate_size,
        widths=widths,
    )
