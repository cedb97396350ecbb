"""`calibrate --types`: what each tensor type costs the dense model, on the held-out slice.

For every type the weights are encoded and decoded as the exporter would store them, and the model
runs layer by layer beside the dense one, all types in one pass (`evaluator`). Of a large model only
a spread sample of layers is quantised. Independent errors add up as losses, and KL grows with the
same power of a loss as for cuts (`frontier.POWER`), so the sample's KL is scaled to all layers by
that power of their weights. Embeddings and output matrix are then measured on their own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, prod
from pathlib import Path

import torch

from tenp_edge.calibration.held_out import load_slice, slice_digest
from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource, WeightSource
from tenp_edge.errors import UserError
from tenp_edge.evaluation.evaluator import LayerCache
from tenp_edge.evaluation.measured_variants import Measured, measure_variants
from tenp_edge.evaluation.variants import OtherWeights
from tenp_edge.exporters.base import ExportData, Exporter, ExportOptions, Requantiser
from tenp_edge.models import ModelConfig, expected_tensors
from tenp_edge.planning.measured.kl_law import POWER
from tenp_edge.planning.measured.type_costs import Conditions, TypeCost, TypeCosts, load_costs
from tenp_edge.progress import QUIET, Progress

# Models above this are sampled: encoding 2e8 weights in seven types takes minutes.
SAMPLED_ABOVE = 2 * 10**8
_SHARE, _LEAST = 5, 4


@dataclass(frozen=True)
class TypeJob:
    """What is to be measured: ``quants`` of ``writer``, in files of ``options`` otherwise.

    ``layers``: those that are quantised; None: all, or a sample where the model is large.
    """

    writer: Exporter
    options: ExportOptions
    quants: tuple[str, ...]
    layers: tuple[int, ...] | None = None

    def options_of(self, quant: str) -> ExportOptions:
        weighted = self.options.imatrix and quant in self.writer.weighted_quants
        return replace(self.options, quant=quant, imatrix=weighted)

    def chosen_layers(self, config: ModelConfig) -> tuple[int, ...]:
        count = config.num_hidden_layers
        if self.layers is not None:
            return self.layers
        large = sum(_layer_weights(config)) > SAMPLED_ABOVE
        return spread(count, max(_LEAST, ceil(count / _SHARE))) if large else tuple(range(count))

    def conditions(self, fingerprint: str, text: str) -> Conditions:
        options = self.options
        return Conditions(
            fingerprint, text, self.writer.format, options.imatrix, options.tensor_types
        )


def spread(count: int, wanted: int) -> tuple[int, ...]:
    """``wanted`` of ``count`` layers, evenly spread, the first and the last among them; of one, the
    one in the middle."""
    if wanted >= count:
        return tuple(range(count))
    if wanted == 1:
        return (count // 2,)
    return tuple(round(i * (count - 1) / (wanted - 1)) for i in range(wanted))


def measure_types(
    checkpoint: Checkpoint,
    job: TypeJob,
    statistics: Statistics,
    directory: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress = QUIET,
) -> TypeCosts:
    """What each type of ``job`` costs, kept in types.json of ``directory`` (the statistics').

    What was measured there under the same conditions is not measured again. Raises UserError where
    there is no held-out slice, or the format cannot say what its types do.
    """
    writer, domains = job.writer, load_slice(directory)
    if not isinstance(writer, Requantiser):
        raise UserError(
            f"format {writer.format} cannot say what its types cost", "leave --types out"
        )
    known = _known(job, checkpoint, directory, slice_digest(domains))
    missing = [quant for quant in job.quants if quant not in known.types]
    if not missing:
        return known
    cached = LayerCache(checkpoint.path)
    data = ExportData(Importance(statistics) if job.options.imatrix else None)
    source = ModelSource(cached)
    started = time.monotonic()
    sources = [writer.requantised(source, job.options_of(quant), data) for quant in missing]
    whole = len(known.layers) == checkpoint.config.num_hidden_layers
    measured = measure_variants(
        cached,
        _variants(sources, missing, None if whole else known.layers),
        domains,
        device=device,
        dtype=dtype,
        work=directory,
        progress=progress,
        what="types",
    )
    seconds = round((time.monotonic() - started) / len(missing), 2)
    scale = _scale(checkpoint.config, known.layers)
    costs = known.with_types(
        dict(zip(missing, _costs(measured, whole, scale, seconds), strict=True))
    )
    costs.save(directory)
    return costs


def missing_of(job: TypeJob, checkpoint: Checkpoint, directory: Path) -> TypeJob:
    """``job`` without the types that ``directory`` has of it already."""
    known = _known(job, checkpoint, directory, slice_digest(load_slice(directory)))
    return replace(job, quants=tuple(q for q in job.quants if q not in known.types))


def _known(job: TypeJob, checkpoint: Checkpoint, directory: Path, text: str) -> TypeCosts:
    """What ``directory`` has of the very same measurement, or nothing yet."""
    conditions = job.conditions(checkpoint.fingerprint, text)
    layers, stored = job.chosen_layers(checkpoint.config), load_costs(directory)
    if stored is not None and stored.conditions == conditions and stored.layers == layers:
        return stored
    return TypeCosts(conditions, job.options.layout or job.writer.layouts[0], layers)


def _variants(
    sources: Sequence[WeightSource], quants: Sequence[str], layers: Sequence[int] | None
) -> list[OtherWeights]:
    """One variant a type; with ``layers`` two: those layers, and what is outside all layers."""
    made = []
    for source, quant in zip(sources, quants, strict=True):
        if layers is None:
            made.append(OtherWeights(source, quant))
        else:
            made.append(OtherWeights(source, quant, layers, ends=False))
            made.append(OtherWeights(source, quant, ()))
    return made


def _costs(
    variants: Sequence[Measured], whole: bool, scale: float, seconds: float
) -> list[TypeCost]:
    kls = [measured.mean_kl for measured in variants]
    if whole:
        return [TypeCost(kl, kl, 0.0, 1.0, seconds) for kl in kls]
    return [
        TypeCost(layers * scale + ends, layers, ends, scale, seconds)
        for layers, ends in zip(kls[::2], kls[1::2], strict=True)
    ]


def _layer_weights(config: ModelConfig) -> list[int]:
    """Weights of each layer's matrices."""
    counts = [0] * config.num_hidden_layers
    for spec in expected_tensors(config):
        if spec.layer is not None and len(spec.shape) > 1:
            counts[spec.layer] += prod(spec.shape)
    return counts


def _scale(config: ModelConfig, layers: Sequence[int]) -> float:
    """What the KL of errors in ``layers`` becomes when all layers have them."""
    weights = _layer_weights(config)
    return float((sum(weights) / sum(weights[layer] for layer in layers)) ** POWER)


def measuring_seconds(
    config: ModelConfig, job: TypeJob, tokens: int, active_parameters: int, operations: float
) -> float:
    """About how long `measure_types` takes on ``tokens`` of text: every type encodes the chosen
    layers and the ends, and runs as one forward, or two where layers are sampled.

    ``operations``: floating-point operations per second of the forward.
    """
    weights, layers = _layer_weights(config), job.chosen_layers(config)
    ends = sum(prod(spec.shape) for spec in expected_tensors(config) if spec.layer is None)
    encoded = 4 * (sum(weights[layer] for layer in layers) + ends)
    speeds = [job.writer.encoding_speed(job.options_of(quant)) for quant in job.quants]
    forwards = 1 + len(job.quants) * (1 if len(layers) == config.num_hidden_layers else 2)
    computing = forwards * tokens * 2 * active_parameters / operations
    return sum(encoded / speed for speed in speeds) + computing
