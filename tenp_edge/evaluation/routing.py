"""How many of a token's experts are still the same after the cut, layer by layer.

The router is untouched, but what reaches it is not: what the layers before lost moves a token to
other experts. Both models choose anyway while their logits are computed; here it is taken down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from tenp_edge.forward.experts import ExpertGroup, RaggedExperts, routed_experts
from tenp_edge.forward.sweep import LayerObserver
from tenp_edge.forward.text_batch import TextBatch
from tenp_edge.models import ModelConfig

# Tokens that are taken down at most: of 94 layers with 8 experts a token, 100 MB.
_MOST_TOKENS = 2**16


@dataclass(frozen=True)
class RoutingOverlap:
    """``layers``: layer -> mean share, over ``tokens`` tokens, of the experts that the reference
    chose which the candidate chose too."""

    tokens: int
    layers: Mapping[str, float]


@dataclass
class Choices:
    """What one model chose: layer -> [sequences, seq, top_k] int16, of the first sequences."""

    config: ModelConfig
    rows: int
    by_layer: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, config: ModelConfig, batch: TextBatch) -> Choices:
        return cls(config, max(1, _MOST_TOKENS // batch.seq_len))

    def attach(self, index: int, layer: nn.Module) -> LayerObserver:
        """Watches ``layer``, where it has experts."""
        if index not in self.config.expert_widths:
            return LayerObserver()
        return _Watch(routed_experts(layer), self.rows, self.by_layer.setdefault(index, []))


class _Watch(LayerObserver):
    """Of one layer; runs of rows come in order."""

    def __init__(self, experts: RaggedExperts, rows: int, into: list[torch.Tensor]) -> None:
        self._experts, self._rows, self._into = experts, rows, into
        experts.observer = self

    def begin(self, run: slice) -> None:
        self._run = run

    def expert(self, group: ExpertGroup) -> None:
        """What the single expert did is of no interest."""

    def routed(self, chosen: torch.Tensor, output: torch.Tensor) -> None:
        count = min(self._run.stop, self._rows) - self._run.start
        if count > 0:
            by_row = chosen.view(self._run.stop - self._run.start, -1, chosen.shape[-1])
            self._into.append(by_row[:count].to("cpu", torch.int16))

    def done(self, layer: nn.Module) -> None:
        """The two hold each other, and a layer must be freed at once."""
        self._experts.observer = None


def overlap(
    reference: Choices,
    candidate: Choices,
    batch: TextBatch,
    numbers: Mapping[int, torch.Tensor] | None = None,
) -> RoutingOverlap | None:
    """None where the two cannot be compared. ``numbers``: layer -> the reference's number of each
    of the candidate's experts, where some were removed."""
    if reference.config.num_experts != candidate.config.num_experts and numbers is None:
        return None
    rows = min(reference.rows, len(batch))
    active = batch.active[:rows].reshape(-1)
    shares = {
        str(layer): _same(torch.cat(chosen), torch.cat(candidate.by_layer[layer]), active, named)
        for layer, chosen in sorted(reference.by_layer.items())
        for named in [None if numbers is None else numbers[layer]]
    }
    return RoutingOverlap(int(active.sum()), shares) if shares else None


def _same(
    left: torch.Tensor, right: torch.Tensor, active: torch.Tensor, numbers: torch.Tensor | None
) -> float:
    """Mean share of [rows, seq, top_k] ``left`` that is in ``right``, over ``active`` tokens."""
    left, right = (chosen.reshape(-1, chosen.shape[-1])[active].long() for chosen in (left, right))
    right = right if numbers is None else numbers[right]
    found = (left[:, :, None] == right[:, None, :]).any(dim=-1)
    return float(found.double().mean())
