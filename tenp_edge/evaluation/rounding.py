"""What every tensor type does to a model's weights, from a sample of rows; and what that costs.

Two things are measured. The relative error of every type, on rows of some experts of some layers
and of every other matrix, encoded with their importance matrix: no matrix is encoded whole. And the
KL of the model with one group of matrices (a role: "q", or the experts' down) in one type: what an
error in that role means for this very model. The groups run beside the dense model in one pass.

It is a part of calibrating and must stay a small one: little text is read (`rounding_text`), the
dense model runs once for groups and plans, and a large model's experts are not encoded
(`emulated_rounding`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import torch

from tenp_edge.calibration.held_out import load_slice, slice_digest
from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.evaluation.evaluator import DenseStates, LayerCache
from tenp_edge.evaluation.measured_variants import Measured, measure_variants
from tenp_edge.evaluation.mixed_plans import PARTS, MixedPlans, planner_of
from tenp_edge.evaluation.plain_cuts import PlainCuts
from tenp_edge.evaluation.refine import known_trials
from tenp_edge.evaluation.rounded_groups import Groups
from tenp_edge.evaluation.rounded_weights import EMULATED_ABOVE, MEASURED_LAYERS, relative_errors
from tenp_edge.evaluation.rounding_job import RoundingJob
from tenp_edge.evaluation.rounding_text import measured_text, scored_after_start
from tenp_edge.evaluation.type_sensitivity import SAMPLED_ABOVE, spread
from tenp_edge.evaluation.undoing import Suspects, Trials, expert_key, suspected_types
from tenp_edge.evaluation.variants import Variant
from tenp_edge.exporters.base import ExportData
from tenp_edge.exporters.mixing import SampledRows
from tenp_edge.forward.text_batch import Domain, token_count
from tenp_edge.models import ModelConfig
from tenp_edge.models.inspection import inspect_model
from tenp_edge.planning.measured.rounding_errors import (
    EXPERT_GROUPS,
    Errors,
    MixedCost,
    RoundingErrors,
    load_errors,
)
from tenp_edge.progress import QUIET, Progress

_EXPERTS, _ROWS = 4, 4  # of a sampled layer; of each of their matrices
_LAYERS = 12  # that experts are sampled in
_EMULATED_PER_SECOND = 2 * 10**8  # weights


def measure_rounding(
    checkpoint: Checkpoint,
    job: RoundingJob,
    statistics: Statistics,
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    elsewhere: Sequence[Domain] = (),
    progress: Progress = QUIET,
) -> RoundingErrors:
    """Kept in ``directory`` (the statistics', `rounding_errors.file_of`); not measured twice.
    ``elsewhere``: text of many kinds, for what cuts cost others than the calibrated one.

    Raises UserError where there is no held-out slice.
    """
    domains = load_slice(directory)
    conditions = job.conditions(checkpoint.fingerprint, slice_digest(domains))
    known = load_errors(directory, job.writer.format)
    if known is not None and known.conditions == conditions:
        return known
    started = time.monotonic()
    domains = measured_text(checkpoint, job, domains, Importance(statistics).tokens)
    data = ExportData(Importance(statistics) if job.options.imatrix else None)
    errors, suspects = sampled_errors(checkpoint, job, data, progress)
    errors = replace(errors, conditions=conditions)
    cached = LayerCache(checkpoint.path)
    groups, dense = Groups(cached, job, data, errors, suspects), DenseStates()
    tried = Trials(groups.source, job, data, errors, suspects)

    def measured(variants: Sequence[Variant], what: str) -> list[Measured]:
        return measure_variants(
            cached,
            variants,
            domains,
            device=device,
            dtype=dtype,
            work=directory,
            progress=progress,
            what=what,
            positions=scored_after_start,
            dense=dense,
        )

    cuts, trials = PlainCuts.of(cached, statistics), known_trials(directory)
    plain = [] if trials else cuts.variants()
    variants: list[Variant] = [*plain, *groups.variants(), *tried.variants()]
    found = measured(variants, "groups of matrices")
    own = () if trials else cuts.trials(found[: len(plain)])
    kls = [one.mean_kl for one in found[len(plain) :]]
    costs = groups.costs(kls[: len(groups.names)])
    convicted = tried.convicted(kls[len(groups.names) :], costs, statistics, trials or own)
    there = cuts.elsewhere(
        elsewhere,
        token_count(domains),
        device=device,
        dtype=dtype,
        work=directory,
        progress=progress,
    )
    errors = replace(tried.without(convicted), groups=costs, cuts=own, elsewhere=there)
    planner = planner_of(checkpoint, job.writer, job.options.layout, statistics, errors, trials)
    mixed = MixedPlans(planner, groups.sampled_layers)
    found = measured(mixed.variants(cached, data.imatrix is not None), "mixed plans")
    plans = tuple(
        MixedCost(loss, one.mean_kl) for loss, one in zip(mixed.losses(), found, strict=True)
    )
    errors = replace(errors, plans=plans, seconds=round(time.monotonic() - started, 2))
    errors.save(directory)
    return errors


# -- errors of sampled rows ------------------------------------------------------------------------


def sampled_errors(
    checkpoint: Checkpoint, job: RoundingJob, data: ExportData, progress: Progress = QUIET
) -> tuple[RoundingErrors, Suspects]:
    """The relative errors of every type, without what they cost; and the types suspected to cost
    far more."""
    config, source = checkpoint.config, ModelSource(checkpoint)
    places = spread(len(config.moe_layers), min(_LAYERS, len(config.moe_layers)))
    layers = sorted({config.moe_layers[place] for place in places})

    def suspected(rows: Sequence[SampledRows], errors: Errors) -> frozenset[str]:
        decoded = source.stored_dtype is None  # and so on the levels of a type, or nearly
        return frozenset() if decoded else suspected_types(job.mixer, rows, errors)

    experts, others = dict[int, dict[str, Errors]](), dict[str, Errors]()
    suspects = dict[str, frozenset[str]]()
    with progress.task("sampling types", len(layers) + 1, "layers") as task:
        for layer in layers:
            samples = _expert_samples(source, data.imatrix, layer)
            experts[layer] = {part: _errors(job, rows) for part, rows in samples.items()}
            for part, rows in samples.items():
                suspects[expert_key(layer, part)] = suspected(rows, experts[layer][part])
            # Where they have no gate, its errors are up's: they multiply a loss of 0.
            experts[layer].setdefault("gate", experts[layer]["up"])
            task.advance()
        matrices = job.mixer.sampled_matrices(source, job.options, data, _EXPERTS * _ROWS)
        for matrix, sample in matrices:
            others[matrix.key] = _errors(job, [sample])
            suspects[matrix.key] = suspected([sample], others[matrix.key])
        task.advance()
    conditions = job.conditions(checkpoint.fingerprint, "")
    return RoundingErrors(conditions, experts, others), suspects


def _expert_samples(
    source: ModelSource, imatrix: Importance | None, layer: int
) -> dict[str, list[SampledRows]]:
    """Of one layer's experts, by projection: rows of those that tokens reached."""
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
    return samples


def _sampled_experts(config: ModelConfig, imatrix: Importance | None, layer: int) -> list[int]:
    """Spread over those with the most tokens first half."""
    every = range(config.num_experts)
    if imatrix is None:
        return [every[place] for place in spread(len(every), min(_EXPERTS, len(every)))]
    tokens = {expert: imatrix.expert(layer, expert, "up").tokens for expert in every}
    reached = sorted((e for e in every if tokens[e]), key=lambda e: -tokens[e]) or list(every)
    return [reached[place] for place in spread(len(reached), min(_EXPERTS, len(reached)))]


def _errors(job: RoundingJob, samples: Sequence[SampledRows]) -> Errors:
    return relative_errors(job.mixer, samples, job.types or job.mixer.mixed_types)


def rounding_seconds(
    checkpoint: Checkpoint,
    job: RoundingJob,
    held_out: Sequence[Domain],
    calibrated: int,
    operations: float,
) -> float:
    """About how long `measure_rounding` takes on ``held_out``, after a calibration of so many
    tokens: the forwards; every matrix is encoded once for its group and once a plan, but for the
    experts of a large model. ``operations``: floating-point operations a second of the forward.
    """
    config = checkpoint.config
    active = inspect_model(checkpoint.path).active_parameters
    tokens = token_count(measured_text(checkpoint, job, held_out, calibrated))
    computing = job.forwards(config) * tokens * 2 * active / operations
    matrices = job.mixer.typed_matrices(config, job.options)
    speed = job.writer.encoding_speed(replace(job.options, quant=job.mixer.probed_quant)) / 4
    experts, plans = config.expert_weights, len(PARTS)
    encoded = experts + sum(prod(matrix.shape) for matrix in matrices)
    if experts <= EMULATED_ABOVE:
        return computing + (1 + plans) * encoded / speed
    if experts <= SAMPLED_ABOVE:
        return computing + encoded / speed + plans * experts / _EMULATED_PER_SECOND
    part = min(1.0, MEASURED_LAYERS / len(config.moe_layers))
    sizes = [prod(m.shape) * (1 if m.layer is None else part) for m in matrices]
    emulated = (len(EXPERT_GROUPS) + len(PARTS)) * part * experts
    return computing + sum(sizes) / speed + emulated / _EMULATED_PER_SECOND
