"""What every tensor type does to a model's weights, from a sample of rows; and what that costs.

Two things are measured. The relative error of every type, on rows of some experts of some layers
and of every other matrix, encoded with their importance matrix: no matrix is encoded whole. And the
KL of the model with one group of matrices (a role: "q", or the experts' down) in one type: what an
error in that role means for this very model. The groups run beside the dense model in one pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch

from tenp_edge.calibration.held_out import load_slice, slice_digest
from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint, ExpertWeights
from tenp_edge.checkpoint.source import ModelSource, Rows, WeightSource
from tenp_edge.checkpoint.tensor_types import TensorTypes
from tenp_edge.evaluation.evaluator import LayerCache
from tenp_edge.evaluation.measured_variants import measure_variants
from tenp_edge.evaluation.mixed_plans import PARTS, MixedPlans, planner_of
from tenp_edge.evaluation.refine import known_trials
from tenp_edge.evaluation.type_sensitivity import SAMPLED_ABOVE, spread
from tenp_edge.evaluation.variants import OtherWeights
from tenp_edge.exporters.base import ExportData, Exporter, ExportOptions, Requantiser
from tenp_edge.exporters.mixing import Mixer, SampledRows, TypedMatrix
from tenp_edge.models import ModelConfig, TensorSpec
from tenp_edge.planning.measured.rounding_errors import (
    EXPERT_GROUPS,
    Errors,
    GroupCost,
    MixedCost,
    RoundingErrors,
    load_errors,
)
from tenp_edge.planning.measured.type_costs import Conditions
from tenp_edge.progress import QUIET, Progress

_EXPERTS, _ROWS = 4, 4  # of a sampled layer; of each of their matrices
_LAYERS = 12  # that experts are sampled in
_MEASURED_LAYERS = 8  # of a large model, whose groups are rounded
_PROBE_BITS = 3.5  # of the type that groups are measured in


@dataclass(frozen=True)
class RoundingJob:
    """What is to be measured: ``types`` of ``writer``, a `Mixer`, in files of ``options``; () for
    all that it can mix."""

    writer: Exporter
    options: ExportOptions
    types: tuple[str, ...] = ()

    @property
    def mixer(self) -> Mixer:
        assert isinstance(self.writer, Mixer)
        return self.writer

    def relative_errors(self, samples: Sequence[SampledRows]) -> dict[str, float]:
        """Of all the types (`relative_errors`)."""
        return relative_errors(self.mixer, samples, self.types or self.mixer.mixed_types)

    def conditions(self, fingerprint: str, text: str) -> Conditions:
        options = self.options
        return Conditions(
            fingerprint, text, self.writer.format, options.imatrix, options.tensor_types
        )


def measure_rounding(
    checkpoint: Checkpoint,
    job: RoundingJob,
    statistics: Statistics,
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress = QUIET,
) -> RoundingErrors:
    """Kept in ``directory`` (the statistics', `rounding_errors.file_of`); not measured twice.

    Raises UserError where there is no held-out slice.
    """
    domains = load_slice(directory)
    conditions = job.conditions(checkpoint.fingerprint, slice_digest(domains))
    known = load_errors(directory, job.writer.format)
    if known is not None and known.conditions == conditions:
        return known
    started = time.monotonic()
    data = ExportData(Importance(statistics) if job.options.imatrix else None)
    errors = sampled_errors(checkpoint, job, data, progress)
    errors = replace(errors, conditions=conditions)
    cached = LayerCache(checkpoint.path)
    groups = _Groups(cached, job, data, errors)

    def measured(variants: Sequence[OtherWeights], what: str) -> list[float]:
        found = measure_variants(
            cached,
            variants,
            domains,
            device=device,
            dtype=dtype,
            work=directory,
            progress=progress,
            what=what,
        )
        return [one.mean_kl for one in found]

    errors = replace(errors, groups=groups.costs(measured(groups.variants(), "groups of matrices")))
    trials = known_trials(directory)
    planner = planner_of(checkpoint, job.writer, job.options.layout, statistics, errors, trials)
    mixed = MixedPlans(planner, groups.sampled_layers)
    kls = measured(mixed.variants(cached, job.options.imatrix), "mixed plans")
    plans = tuple(MixedCost(*pair) for pair in zip(mixed.losses(), kls, strict=True))
    errors = replace(errors, plans=plans, seconds=round(time.monotonic() - started, 2))
    errors.save(directory)
    return errors


# -- errors of sampled rows ------------------------------------------------------------------------


def sampled_errors(
    checkpoint: Checkpoint, job: RoundingJob, data: ExportData, progress: Progress = QUIET
) -> RoundingErrors:
    """The relative errors of every type, without what they cost."""
    config, source = checkpoint.config, ModelSource(checkpoint)
    places = spread(len(config.moe_layers), min(_LAYERS, len(config.moe_layers)))
    layers = sorted({config.moe_layers[place] for place in places})
    experts, others = {}, {}
    with progress.task("sampling types", len(layers) + 1, "layers") as task:
        for layer in layers:
            experts[layer] = _expert_errors(source, job, data.imatrix, layer)
            task.advance()
        matrices = job.mixer.sampled_matrices(source, job.options, data, _EXPERTS * _ROWS)
        for matrix, sample in matrices:
            others[matrix.key] = job.relative_errors([sample])
        task.advance()
    return RoundingErrors(job.conditions(checkpoint.fingerprint, ""), experts, others)


def _expert_errors(
    source: ModelSource, job: RoundingJob, imatrix: Importance | None, layer: int
) -> dict[str, Errors]:
    """Of one layer's experts, by projection: rows of those that tokens reached. Where they have no
    gate, its errors are up's: they multiply a loss of 0."""
    projections = source.config.family.matrices
    samples: dict[str, list[SampledRows]] = {part: [] for part in projections}
    for expert in _sampled_experts(source.config, imatrix, layer):
        weights = source.expert(layer, expert)
        for part in projections:
            matrix = getattr(weights, part)
            squares = None if imatrix is None else imatrix.expert(layer, expert, part)
            importance = None if squares is None or not squares.tokens else squares.weights()
            step = max(1, len(matrix) // _ROWS)
            samples[part].append(SampledRows(matrix[::step][:_ROWS], importance))
    errors = {part: job.relative_errors(found) for part, found in samples.items()}
    return {"gate": errors["up"], **errors}


def _sampled_experts(config: ModelConfig, imatrix: Importance | None, layer: int) -> list[int]:
    """Spread over those with the most tokens first half."""
    every = range(config.num_experts)
    if imatrix is None:
        return [every[place] for place in spread(len(every), min(_EXPERTS, len(every)))]
    tokens = {expert: imatrix.expert(layer, expert, "up").tokens for expert in every}
    reached = sorted((e for e in every if tokens[e]), key=lambda e: -tokens[e]) or list(every)
    return [reached[place] for place in spread(len(reached), min(_EXPERTS, len(reached)))]


def relative_errors(
    mixer: Mixer, samples: Sequence[SampledRows], types: Sequence[str]
) -> dict[str, float]:
    """Type -> sum of E_kj^2 q_j over sum of W_kj^2 q_j, averaged over ``samples``; types whose
    blocks are longer than a row are left out, of rows that are no whole blocks the first are taken.
    """
    found: dict[str, float] = {}
    for kind in types:
        shares = [share for s in samples if (share := _relative_error(mixer, s, kind)) is not None]
        if shares:
            found[kind] = sum(shares) / len(shares)
    return found


def _relative_error(mixer: Mixer, sample: SampledRows, kind: str) -> float | None:
    rows, importance = sample.rows.float(), sample.importance
    length = _whole_blocks(mixer, kind, rows.shape[-1])
    if not length:
        return None
    rows = rows[:, :length]
    weights = torch.ones(length) if importance is None else importance[:length]
    total = float((rows.square() @ weights).sum())
    if total <= 0:
        return None
    part = SampledRows(rows, None if importance is None else weights.contiguous())
    error = mixer.rounded(part, kind) - rows
    return float((error.square() @ weights).sum()) / total


def _whole_blocks(mixer: Mixer, kind: str, length: int) -> int:
    """The longest rows, up to ``length``, that ``kind`` holds; 0: none."""
    return next((n for n in range(length, 0, -1) if mixer.legal_type(kind, n) == kind), 0)


# -- what they cost, group by group ----------------------------------------------------------------


class _Groups:
    """One variant a group: its matrices in one type, all else as it is."""

    def __init__(
        self, cached: LayerCache, job: RoundingJob, data: ExportData, errors: RoundingErrors
    ) -> None:
        self.job, self.errors, self.config = job, errors, cached.config
        self.matrices = job.mixer.typed_matrices(cached.config, job.options)
        self.type = _probe_type(job.mixer)
        self.source, self.data = ModelSource(cached), data
        roles = dict.fromkeys(matrix.role for matrix in self.matrices)
        self.names = (*EXPERT_GROUPS, *(role for role in roles if self._error(role)))

    def variants(self) -> list[OtherWeights]:
        return [
            OtherWeights(self._weights(name), name, self._layers(name), ends=self._is_end(name))
            for name in self.names
        ]

    def costs(self, kls: Sequence[float]) -> dict[str, GroupCost]:
        pairs = zip(self.names, kls, strict=True)
        return {
            name: GroupCost(self.type, kl, self._error(name), self._layers(name))
            for name, kl in pairs
        }

    def _of(self, role: str) -> list[TypedMatrix]:
        return [matrix for matrix in self.matrices if matrix.role == role]

    def _all_layers(self, name: str) -> list[int]:
        if name in EXPERT_GROUPS:
            return list(self.config.moe_layers)
        return [matrix.layer for matrix in self._of(name) if matrix.layer is not None]

    @property
    def sampled_layers(self) -> tuple[int, ...] | None:
        """Those of the experts that are rounded; None: all."""
        return self._layers("down") if self._large else None

    @property
    def _large(self) -> bool:
        return self.config.expert_weights > SAMPLED_ABOVE

    def _layers(self, name: str) -> tuple[int, ...]:
        """Those that are rounded: all of a small model's, some of a large one's."""
        layers = self._all_layers(name)
        wanted = min(_MEASURED_LAYERS if self._large else len(layers), len(layers))
        return tuple(layers[i] for i in spread(len(layers), wanted)) if layers else ()

    def _is_end(self, name: str) -> bool:
        return name not in EXPERT_GROUPS and not self._all_layers(name)

    def _error(self, name: str) -> float:
        """Of the matrices that are rounded; of experts their losses say more (`joint_losses`)."""
        if name in EXPERT_GROUPS:
            return 0.0
        layers, total = self._layers(name), 0.0
        for matrix in self._of(name):
            if matrix.layer is None or matrix.layer in layers:
                kind = self.job.mixer.legal_type(self.type, matrix.shape[-1])
                total += self.errors.others.get(matrix.key, {}).get(kind, 0.0)
        return total

    def _weights(self, name: str) -> WeightSource:
        writer, config = self.job.writer, self.config
        assert isinstance(writer, Requantiser)
        plain = self.job.mixer.mixed_types[0]
        parts = EXPERT_GROUPS.get(name, ())
        rows = {
            part: dict.fromkeys(config.moe_layers, (kind,) * config.num_experts)
            for part in ("gate", "down")
            for kind in [self.type if part in parts else plain]
        }
        others = {m.key: self.type if m.role == name else plain for m in self.matrices}
        types = TensorTypes(rows["gate"], rows["down"], others)
        options = self.job.options.typed(types)
        rounded = writer.requantised(self.source, options, self.data)
        return _Partly(self.source, rounded, name)


class _Partly:
    """``rounded`` in the matrices of group ``name``, ``source`` elsewhere (a `WeightSource`)."""

    def __init__(self, source: ModelSource, rounded: WeightSource, name: str) -> None:
        self._source, self._rounded, self._name = source, rounded, name
        self.config: ModelConfig = rounded.config
        self.stored_dtype = None if name in EXPERT_GROUPS else source.stored_dtype

    @property
    def tensors(self) -> Mapping[str, TensorSpec]:
        return self._rounded.tensors

    def read(self, name: str) -> torch.Tensor:
        return self._from(name).read(name)

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._from(name).read_rows(name, start, stop)

    def held(self, name: str) -> Rows:
        return self._from(name).held(name)

    def expert(self, layer: int, expert: int) -> ExpertWeights:
        own = self._name in EXPERT_GROUPS
        return (self._rounded if own else self._source).expert(layer, expert)

    def held_experts(self, layer: int) -> Callable[[int], ExpertWeights]:
        own = self._name in EXPERT_GROUPS
        return (self._rounded if own else self._source).held_experts(layer)

    def _from(self, name: str) -> WeightSource:
        spec = self.tensors[name]
        inside = name in self._source.tensors
        own = spec.role == self._name or (spec.role == "kv_b" and self._name in ("k_b", "v_b"))
        return self._rounded if own or not inside else self._source


def _probe_type(mixer: Mixer) -> str:
    """Of about _PROBE_BITS a weight, one that needs no importance matrix."""
    plain = [kind for kind in mixer.mixed_types if not mixer.needs_importance(kind)]
    return min(plain, key=lambda k: abs(mixer.tensor_bytes(256, 256, k) / 8192 - _PROBE_BITS))


def rounding_seconds(
    config: ModelConfig, job: RoundingJob, tokens: int, active_parameters: int, operations: float
) -> float:
    """About how long `measure_rounding` takes on ``tokens`` of text: a forward for every group and
    every mixed plan, two of the dense model, and every matrix encoded once for its group and once a
    plan. ``operations``: floating-point operations a second of the forward.
    """
    matrices = job.mixer.typed_matrices(config, job.options)
    groups = len(EXPERT_GROUPS) + len({matrix.role for matrix in matrices})
    weights = config.expert_weights
    weights = min(weights, max(SAMPLED_ABOVE, weights * _MEASURED_LAYERS // len(config.moe_layers)))
    weights += sum(prod(matrix.shape) for matrix in matrices)
    speed = job.writer.encoding_speed(replace(job.options, quant=job.mixer.probed_quant))
    forwards = 2 + groups + len(PARTS)
    encoded = 4 * weights * (1 + len(PARTS)) / speed
    return encoded + forwards * tokens * 2 * active_parameters / operations
