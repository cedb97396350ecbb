"""Measuring what tensor types cost, as a step of the verbs: asked for, or because it is cheap."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from tenp_edge.calibration.held_out import load_slice, stored_slice
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.locking import one_writer
from tenp_edge.evaluation.rounding import measure_rounding, rounding_seconds
from tenp_edge.evaluation.rounding_job import RoundingJob
from tenp_edge.evaluation.type_sensitivity import (
    TypeJob,
    measure_types,
    measuring_seconds,
    missing_of,
)
from tenp_edge.exporters.base import (
    Exporter,
    ExportOptions,
    Requantiser,
    exporter,
    measured_quants,
)
from tenp_edge.exporters.mixing import Mixer
from tenp_edge.forward.device import choose_device, choose_dtype
from tenp_edge.forward.text_batch import Domain, token_count
from tenp_edge.models.inspection import inspect_model
from tenp_edge.planning.measured.rounding_errors import RoundingErrors, load_errors
from tenp_edge.planning.measured.type_costs import TypeCosts, load_costs
from tenp_edge.progress import Progress
from tenp_edge.units import format_seconds
from tenp_edge.verbs.options import CalibrationOptions, ComputeOptions, HeldOutOptions
from tenp_edge.verbs.timing import WORTH_SAYING_SECONDS, operations_per_second
from tenp_edge.verbs.token_chunks import most_tokens, validation_domains

# What compress spends on it without being asked.
CHEAP_SECONDS = 60
_OTHER_SAMPLES = 4  # of each kind of text in the package


def exactly(checkpoint: Checkpoint, compute: ComputeOptions) -> tuple[torch.device, torch.dtype]:
    """In float32 unless asked otherwise, as in validate: bf16 flips near-tied routing."""
    device = choose_device(compute.device)
    kind = "float32" if compute.dtype == "auto" else compute.dtype
    return device, choose_dtype(kind, device, checkpoint.dtype)


def default_job(format: str = "gguf") -> TypeJob:
    """The types that may be chosen for files of ``format``, with an importance matrix."""
    writer = exporter(format)
    options = ExportOptions(writer.default_quant, writer.layouts[0], imatrix=True)
    return TypeJob(writer, options, measured_quants(writer))


def types_into(
    checkpoint: Checkpoint,
    job: TypeJob,
    statistics: Statistics,
    directory: Path,
    compute: CalibrationOptions,
    progress: Progress,
) -> TypeCosts:
    """What the types of ``job`` cost, in types.json of ``directory``; says first how long it will
    take, when that is more than a moment."""
    seconds, _ = _seconds(checkpoint, job, directory, compute)
    if seconds >= WORTH_SAYING_SECONDS:
        progress.note(f"measuring types: about {format_seconds(seconds)}, by a quick measurement")
    return _measured(checkpoint, job, statistics, directory, compute, progress)


def types_if_cheap(
    checkpoint: Checkpoint,
    job: TypeJob,
    statistics: Statistics,
    directory: Path,
    compute: CalibrationOptions,
    progress: Progress,
) -> None:
    """`types_into` where it is a matter of a moment, or short beside the calibration; otherwise one
    note says how to get it. Nothing is said where there is no held-out text to measure on."""
    if not job.quants or stored_slice(directory) is None:
        return
    seconds, calibrating = _seconds(checkpoint, job, directory, compute)
    if seconds <= max(CHEAP_SECONDS, calibrating / 5):
        _measured(checkpoint, job, statistics, directory, compute, progress)
        return
    progress.note(
        "types are chosen by a rule: measuring what each costs would take about "
        f"{format_seconds(seconds)}; tenp-edge calibrate MODEL --types -o {directory} does"
    )


# -- widths and types together ---------------------------------------------------------------------


def rounding_job(writer: Exporter, options: ExportOptions) -> RoundingJob | None:
    """What rounding does to the matrices of such files; None where they give tensors no types of
    their own, or are not quantised with an importance matrix."""
    mixes = isinstance(writer, Mixer) and writer.rules(options.layout or "").mixes
    mixes = mixes and isinstance(writer, Requantiser)
    return RoundingJob(writer, options) if mixes and options.imatrix else None


def rounding_into(
    checkpoint: Checkpoint,
    job: RoundingJob,
    statistics: Statistics,
    directory: Path,
    compute: CalibrationOptions,
    progress: Progress,
) -> RoundingErrors:
    """What the types of ``job`` do to this model, kept in ``directory``."""
    device, dtype = exactly(checkpoint, compute)
    known = knows_rounding(checkpoint, job, directory)  # then no text is drawn
    with one_writer(directory):
        return measure_rounding(
            checkpoint,
            job,
            statistics,
            directory,
            device=device,
            dtype=dtype,
            elsewhere=() if known else many_kinds(checkpoint, statistics),
            progress=progress,
        )


def many_kinds(checkpoint: Checkpoint, statistics: Statistics) -> list[Domain]:
    """A little of the package's held-out text, of sequences as long as the calibration's."""
    options = HeldOutOptions((), _OTHER_SAMPLES, int(statistics.info["seq_len"]))
    return validation_domains(checkpoint, options)


def rounding_if_known(
    checkpoint: Checkpoint,
    job: RoundingJob,
    statistics: Statistics,
    directory: Path,
    compute: CalibrationOptions,
    progress: Progress,
) -> bool:
    """`rounding_into` where the statistics know what rounding a neuron does, and there is text to
    measure on; whether they do. It is a part of calibrating (`rounding`)."""
    if stored_slice(directory) is None or not statistics.has_rounding:
        return False
    rounding_into(checkpoint, job, statistics, directory, compute, progress)
    return True


def expected_rounding(
    checkpoint: Checkpoint,
    job: RoundingJob,
    held_out: Sequence[Domain],
    compute: CalibrationOptions,
) -> float:
    """Seconds that measuring takes on ``held_out``."""
    speed = operations_per_second(*exactly(checkpoint, compute))
    return rounding_seconds(checkpoint, job, held_out, most_tokens(compute), speed)


def knows_rounding(checkpoint: Checkpoint, job: RoundingJob, directory: Path) -> bool:
    """Whether ``directory`` has what ``job`` would measure, on the text that lies there."""
    errors, text = load_errors(directory, job.writer.format), stored_slice(directory)
    conditions = job.conditions(checkpoint.fingerprint, text or "")
    return errors is not None and errors.conditions == conditions


def rounding_of(
    checkpoint: Checkpoint, directory: Path, format: str = "gguf"
) -> RoundingErrors | None:
    """What was measured of this checkpoint in ``directory``, on the text that lies there, of the
    types of ``format``."""
    errors = load_errors(directory, format)
    if errors is None or errors.conditions.fingerprint != checkpoint.fingerprint:
        return None
    return errors if errors.conditions.slice == stored_slice(directory) else None


def _measured(
    checkpoint: Checkpoint,
    job: TypeJob,
    statistics: Statistics,
    directory: Path,
    compute: CalibrationOptions,
    progress: Progress,
) -> TypeCosts:
    device, dtype = exactly(checkpoint, compute)
    missing = missing_of(job, checkpoint, directory).quants
    with one_writer(directory) if missing else nullcontext():
        return measure_types(
            checkpoint, job, statistics, directory, device=device, dtype=dtype, progress=progress
        )


def _seconds(
    checkpoint: Checkpoint, job: TypeJob, directory: Path, compute: CalibrationOptions
) -> tuple[float, float]:
    """About how long what is missing of ``job`` takes, and a calibration; 0 where all is there."""
    job = missing_of(job, checkpoint, directory)
    if not job.quants:
        return 0.0, 0.0
    tokens, active, speed = _work(checkpoint, directory, compute)
    seconds = measuring_seconds(checkpoint.config, job, tokens, active, speed)
    return seconds, most_tokens(compute) * 2 * active / speed


def _work(
    checkpoint: Checkpoint, directory: Path, compute: CalibrationOptions
) -> tuple[int, int, float]:
    """Tokens of the held-out text, active parameters, and operations a second."""
    speed = operations_per_second(*exactly(checkpoint, compute))
    tokens = token_count(load_slice(directory))
    return tokens, inspect_model(checkpoint.path).active_parameters, speed


def costs_of(checkpoint: Checkpoint, directory: Path) -> TypeCosts | None:
    """What was measured of this checkpoint in ``directory``, on the text that lies there."""
    costs = load_costs(directory)
    if costs is None or costs.conditions.fingerprint != checkpoint.fingerprint:
        return None
    return costs if costs.conditions.slice == stored_slice(directory) else None
