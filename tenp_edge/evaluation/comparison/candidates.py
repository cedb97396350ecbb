"""Pruned models that are more than a plan: offsets for what was cut, masks inside the matrices.

They exist to be measured. No format stores an expert's offset, and a mask saves no byte in a dense
format.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import nn

from tenp_edge.calibration.statistics import INPUT_SUM
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import ExpertKey
from tenp_edge.checkpoint.files import Checkpoint, ExpertWeights
from tenp_edge.checkpoint.slicing import slice_expert
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.evaluation.variants import DENSE, LayerKey, Variant, neurons_digest
from tenp_edge.forward.experts import routed_experts
from tenp_edge.scoring.saliency import sum_of, tokens_routed


class Candidate(Variant, Protocol):
    """A variant that is pruned from the checkpoint itself."""

    def source(self, checkpoint: Checkpoint) -> ModelSource: ...


@dataclass(frozen=True)
class Compensated:
    """Neurons cut, and their mean output added back: offset = W_down[:, cut] mean(m[cut]).

    With every neuron of an expert cut this is MoNE's replacement of an expert by its mean output
    vector (the router still chooses it); with some, FLAP's bias compensation.
    """

    retained: Mapping[ExpertKey, torch.Tensor]
    statistics: Statistics

    def key(self, layer: int | None) -> LayerKey:
        kept = [r.long() for (index, _), r in sorted(self.retained.items()) if index == layer]
        if not kept:
            return DENSE
        return LayerKey("compensated", f"{neurons_digest(kept)} {_identity(self.statistics)}")

    def source(self, checkpoint: Checkpoint) -> ModelSource:
        return _Sliced(checkpoint, self.retained)

    def adapt(self, index: int, layer: nn.Module, checkpoint: Checkpoint) -> None:
        if index not in self.statistics.layers:
            return
        experts = routed_experts(layer)
        means = mean_activations(self.statistics, index)
        offsets = {}
        for expert, mean in enumerate(means):
            cut = torch.ones(len(mean), dtype=torch.bool)
            cut[self.retained[index, expert].long()] = False
            if cut.any():
                down = checkpoint.expert(index, expert).down
                offsets[expert] = down.float() @ (mean * cut).float()
        experts.offsets = offsets


def _identity(statistics: Statistics) -> str:
    """Two calibrations of one model differ in what they record of themselves."""
    return hashlib.sha256(json.dumps(dict(statistics.info), sort_keys=True).encode()).hexdigest()


def mean_activations(statistics: Statistics, layer: int) -> torch.Tensor:
    """mean of m over the routed tokens of all domains, float64 [experts, width]."""
    total = sum_of(statistics.layer(domain, layer)["activation"] for domain in statistics.domains)
    return total / tokens_routed(statistics, layer).clamp_min(1)[:, None]


class _Sliced(ModelSource):
    """The dense model's shape with experts cut by hand, to no neuron at all if so asked."""

    def __init__(self, checkpoint: Checkpoint, retained: Mapping[ExpertKey, torch.Tensor]) -> None:
        super().__init__(checkpoint)
        self.retained = retained

    def _read_expert(self, layer: int, expert: int) -> ExpertWeights:
        weights = super()._read_expert(layer, expert)
        kept = self.retained[layer, expert].long()
        if len(kept):
            return slice_expert(weights, kept)
        # One neuron of zeros: a matrix without rows is nobody's well-tested case.
        one = slice_expert(weights, torch.zeros(1, dtype=torch.int64))
        return replace(one.mapped(torch.zeros_like), down_bias=one.down_bias)


@dataclass(frozen=True)
class Masked:
    """Unstructured Wanda, arXiv 2306.11695: in each row of each matrix the ``keep`` share of the
    weights with the largest |W_ij| ||x_j|| stays, the others are zeros in a matrix as large."""

    keep: float
    statistics: Statistics

    def key(self, layer: int | None) -> LayerKey:
        if layer not in self.statistics.layers:
            return DENSE
        return LayerKey("masked", f"{self.keep} {_identity(self.statistics)}")

    def source(self, checkpoint: Checkpoint) -> ModelSource:
        return _MaskedSource(checkpoint, self.keep, self.statistics)

    def adapt(self, index: int, layer: nn.Module, checkpoint: Checkpoint) -> None:
        pass


class _MaskedSource(ModelSource):
    def __init__(self, checkpoint: Checkpoint, keep: float, statistics: Statistics) -> None:
        super().__init__(checkpoint)
        self.keep, self.statistics = keep, statistics
        self._norms: dict[tuple[int, str], torch.Tensor] = {}

    def _read_expert(self, layer: int, expert: int) -> ExpertWeights:
        weights = super()._read_expert(layer, expert)
        inputs = self._norm(layer, INPUT_SUM)[expert]
        neurons = self._norm(layer, "activation_sq")[expert]
        named = zip(self.config.family.matrices, weights.matrices, strict=True)
        masked = {
            name: masked_rows(matrix, neurons if name == "down" else inputs, self.keep)
            for name, matrix in named
        }
        return replace(weights, **masked)

    def _norm(self, layer: int, name: str) -> torch.Tensor:
        """||x_j|| of every expert's inputs (or of its activations) over all domains."""
        if (layer, name) not in self._norms:
            domains = self.statistics.domains
            total = sum_of(self.statistics.layer(domain, layer)[name] for domain in domains)
            self._norms[layer, name] = total.sqrt().float()
        return self._norms[layer, name]


def masked_rows(matrix: torch.Tensor, norms: torch.Tensor, keep: float) -> torch.Tensor:
    """``matrix`` (out, in) with the round(keep * in) best weights of each row left; a column's
    input has the norm ``norms`` [in]."""
    count = round(keep * matrix.shape[1])
    best = (matrix.float().abs() * norms).topk(count, dim=1).indices
    mask = torch.zeros(matrix.shape, dtype=torch.bool).scatter_(1, best, True)
    return matrix * mask
