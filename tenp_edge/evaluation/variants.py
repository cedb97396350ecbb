"""Forms of one model that are measured side by side (`evaluator`), and what tells them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.overlay import Mended
from tenp_edge.checkpoint.source import ModelSource, WeightSource


@dataclass(frozen=True)
class LayerKey:
    """Which weights a layer has: equal for two variants exactly when they have it alike.

    ``kind``: what was done to it ("plan", "type", ...); ``what``: a digest or a name of that kind.
    """

    kind: str
    what: str = ""


DENSE = LayerKey("dense")


class Variant(Protocol):
    """One form of the model."""

    def key(self, layer: int | None) -> LayerKey:
        """Of a layer, or (None) of what lies outside all layers: embeddings, last norm and output
        matrix. `DENSE` where it is the checkpoint's own."""
        ...

    def source(self, checkpoint: Checkpoint) -> WeightSource:
        """Its tensors; called once a layer, so it should be cheap."""
        ...

    def adapt(self, index: int, layer: nn.Module, checkpoint: Checkpoint) -> None:
        """Change decoder layer ``index`` beyond what `source` gives; most do nothing."""
        ...


@dataclass(frozen=True)
class Planned:
    """What a plan leaves, with what was mended in it; None is the dense model."""

    plan: CompressionPlan | None = None
    mended: Mended | None = None

    def key(self, layer: int | None) -> LayerKey:
        plan = self.plan
        if plan is None or layer is None or layer not in plan.widths:
            return DENSE
        if self.mended is not None:
            return LayerKey("mended", f"{plan.digest} {self.mended.digest}")
        if all(width == plan.full_width for width in plan.widths[layer]):
            return DENSE
        experts = range(len(plan.widths[layer]))
        return LayerKey("plan", neurons_digest([plan.neurons(layer, e) for e in experts]))

    def source(self, checkpoint: Checkpoint) -> ModelSource:
        return ModelSource(checkpoint, self.plan, mended=self.mended)

    def adapt(self, index: int, layer: nn.Module, checkpoint: Checkpoint) -> None:
        pass


def neurons_digest(neurons: Sequence[torch.Tensor]) -> str:
    """Identity of the neurons that stay in a layer, of every expert: int64 [width] each."""
    widths = torch.tensor([len(kept) for kept in neurons])
    return hashlib.sha256(torch.cat([widths, *neurons]).numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class OtherWeights:
    """Weights that are not the checkpoint's, in ``layers`` (None: in all) and, with ``ends``,
    outside the layers; ``name`` tells them from others in the same pass."""

    weights: WeightSource
    name: str
    layers: Collection[int] | None = None
    ends: bool = True

    def key(self, layer: int | None) -> LayerKey:
        inside = self.layers is None or layer in self.layers
        has_own = self.ends if layer is None else inside
        return LayerKey("other", self.name) if has_own else DENSE

    def source(self, checkpoint: Checkpoint) -> WeightSource:
        return self.weights

    def adapt(self, index: int, layer: nn.Module, checkpoint: Checkpoint) -> None:
        pass
