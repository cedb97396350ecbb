"""Types that would undo a model's training: suspected by sampled rows, convicted by measured KL.

Weights near a type's levels, yet not on them, are those of a quantised model that was trained on:
rounding takes the training away, which costs far more than an error of its size by chance. So the
dense model runs once a suspected type, with it in every matrix where it is suspected, beside the
groups (`rounded_groups`). Where that costs far more than its error would by the groups' own
measurement, the type is not offered there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import torch

from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.tensor_types import other_key
from tenp_edge.evaluation.rounded_weights import (
    MEASURED_LAYERS,
    Partly,
    is_large,
    partly_rounded,
    relative_errors,
)
from tenp_edge.evaluation.rounding_job import RoundingJob
from tenp_edge.evaluation.type_sensitivity import spread
from tenp_edge.evaluation.variants import OtherWeights
from tenp_edge.exporters.base import ExportData
from tenp_edge.exporters.mixing import Mixer, SampledRows, TypedMatrix
from tenp_edge.planning.joint.losses import law_of_rounding, measured_factors, predicted_loss
from tenp_edge.planning.measured.kl_law import predicted_kl
from tenp_edge.planning.measured.rounding_errors import (
    EXPERT_GROUPS,
    Errors,
    GroupCost,
    RoundingErrors,
)
from tenp_edge.planning.measured.trials import Trial

# Beside SmolLM2's Q4_1 levels: types with an error below 0.5 of the usual, 3 to 100 times as large
# when shaken. Of models that were never quantised, and of its other types, at most 1.8 times.
_SMALL, _EXACT = 0.7, 1e-3  # of the usual error at a type's bits
_SHAKEN = 1.5  # times the error that was there
_FAR_MORE = 3.0  # than the expected KL
_MOST_WEIGHTS = 2 * 10**8  # of experts that are encoded for one trial

# `other_key`, or `expert_key` of a sampled layer -> the types suspected there.
Suspects = Mapping[str, frozenset[str]]


def expert_key(layer: int, projection: str) -> str:
    """How a projection of a layer's experts is named: "3.expert_up"."""
    return other_key(layer, f"expert_{projection}")


def suspected_types(mixer: Mixer, samples: Sequence[SampledRows], errors: Errors) -> frozenset[str]:
    """The types whose levels the weights of ``samples`` lie near: their ``errors`` are too small
    for their bits (an error falls to a quarter with every bit), and are not when the weights are
    shaken. On its levels a type is exact, and no matter."""
    bits = {kind: mixer.tensor_bytes(256, 256, kind) / 2**13 for kind in errors}
    scaled = {kind: error * 4 ** bits[kind] for kind, error in errors.items() if bits[kind] < 12}
    usual = median(scaled.values()) if scaled else 0.0
    small = [k for k, e in scaled.items() if _EXACT * usual < e < _SMALL * usual]
    shaken = relative_errors(mixer, [_shaken(sample) for sample in samples], small)
    return frozenset(kind for kind, error in shaken.items() if error > _SHAKEN * errors[kind])


def _shaken(sample: SampledRows) -> SampledRows:
    """Moved by a tenth of the spread in a row: less than the step of any few-bit type."""
    rows = sample.rows.float()
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    spread_of_rows = (rows - rows.mean(-1, keepdim=True)).square().mean(-1, keepdim=True).sqrt()
    return SampledRows(rows + 0.1 * spread_of_rows * noise, sample.importance)


@dataclass(frozen=True)
class _Trial:
    """``type`` in ``matrices`` and in the experts' projections of ``experts``, layer by layer."""

    type: str
    matrices: tuple[TypedMatrix, ...]
    experts: Mapping[int, tuple[str, ...]]

    @property
    def layers(self) -> tuple[int, ...]:
        inside = {matrix.layer for matrix in self.matrices if matrix.layer is not None}
        return tuple(sorted(inside | set(self.experts)))

    @property
    def ends(self) -> bool:
        return any(matrix.layer is None for matrix in self.matrices)

    def within(self, layers: Collection[int]) -> _Trial:
        """Of those layers, and of what lies outside all layers."""
        matrices = tuple(m for m in self.matrices if m.layer is None or m.layer in layers)
        experts = {layer: parts for layer, parts in self.experts.items() if layer in layers}
        return replace(self, matrices=matrices, experts=experts)

    def sampled(self, most: int) -> _Trial:
        """Of at most so many of its layers, spread over all."""
        layers = self.layers
        return self.within([layers[place] for place in spread(len(layers), most)])


class Trials:
    """One variant a suspected type. Of a large model, whose experts take long to encode, in some
    layers."""

    def __init__(
        self,
        source: ModelSource,
        job: RoundingJob,
        data: ExportData,
        errors: RoundingErrors,
        suspects: Suspects,
    ) -> None:
        self.source, self.job, self.data = source, job, data
        self.errors, self.suspects, self.config = errors, suspects, source.config
        self.matrices = job.mixer.typed_matrices(source.config, job.options)
        types = sorted(frozenset().union(*suspects.values()))
        self._trials = [self._trial(kind) for kind in types]

    def variants(self) -> list[OtherWeights]:
        return [
            OtherWeights(self._weights(t), f"suspected {t.type}", t.layers, t.ends)
            for t in self._trials
        ]

    def convicted(
        self,
        kls: Sequence[float],
        groups: Mapping[str, GroupCost],
        statistics: Statistics,
        trials: Sequence[Trial],
    ) -> frozenset[str]:
        """The types whose ``kls``, of `variants`, are far above what their errors explain by the
        measured ``groups``."""
        errors = replace(self.errors, groups=groups)
        factors = measured_factors(errors, statistics, self.job.mixer, trials).groups
        expected = [self._loss(t, factors, statistics) for t in self._trials]
        law = law_of_rounding(trials)
        return frozenset(
            trial.type
            for trial, kl, loss in zip(self._trials, kls, expected, strict=True)
            if kl > _FAR_MORE * predicted_kl(loss, law)
        )

    def without(self, convicted: frozenset[str]) -> RoundingErrors:
        """The errors of the types that may be chosen."""
        experts = {
            layer: {
                part: self._kept(expert_key(layer, part), kinds, convicted)
                for part, kinds in parts.items()
            }
            for layer, parts in self.errors.experts.items()
        }
        others = {k: self._kept(k, kinds, convicted) for k, kinds in self.errors.others.items()}
        return replace(self.errors, experts=experts, others=others)

    def _kept(self, key: str, errors: Errors, convicted: frozenset[str]) -> Errors:
        out = self.suspects.get(key, frozenset()) & convicted
        return {kind: error for kind, error in errors.items() if kind not in out}

    # -- one trial -------------------------------------------------------------------------------

    def _trial(self, kind: str) -> _Trial:
        matrices = tuple(m for m in self.matrices if kind in self.suspects.get(m.key, ()))
        experts = {layer: self._projections(layer, kind) for layer in self.config.moe_layers}
        trial = _Trial(kind, matrices, {layer: p for layer, p in experts.items() if p})
        if not is_large(self.config) or not trial.layers:
            return trial
        of_a_layer = self.config.expert_weights // len(self.config.moe_layers)
        return trial.sampled(min(MEASURED_LAYERS, max(1, _MOST_WEIGHTS // of_a_layer)))

    def _projections(self, layer: int, kind: str) -> tuple[str, ...]:
        """Those of ``layer`` in which ``kind`` is tried: gate and up have one type."""
        known = self.errors.nearest(layer)
        return tuple(
            part
            for parts in EXPERT_GROUPS.values()
            if any(kind in self.suspects.get(expert_key(known, p), ()) for p in parts)
            for part in parts
        )

    def _weights(self, trial: _Trial) -> Partly:
        keys = frozenset(matrix.key for matrix in trial.matrices)
        return partly_rounded(self.source, self.job, self.data, trial.type, keys, trial.experts)

    def _loss(self, trial: _Trial, factors: Mapping[str, float], statistics: Statistics) -> float:
        mixer, total = self.job.mixer, 0.0
        for matrix in trial.matrices:
            kind = mixer.legal_type(trial.type, matrix.shape[-1])
            error = self.errors.others.get(matrix.key, {}).get(kind, 0.0)
            total += error * factors.get(matrix.role, 0.0)
        for name, parts in EXPERT_GROUPS.items():
            layers = tuple(layer for layer, tried in trial.experts.items() if parts[0] in tried)
            cost = GroupCost(trial.type, 0.0, 0.0, layers)
            found = predicted_loss(self.errors, statistics, mixer, name, cost)
            total += factors[name] * found
        return total
