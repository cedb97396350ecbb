"""`export`: a checkpoint, pruned or not, as one file; ranges where it takes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path

from tenp_edge.calibration.activation_ranges import Ranges, load_ranges
from tenp_edge.calibration.imatrix import Importance, importance_of
from tenp_edge.calibration.range_measuring import identity, measure_ranges
from tenp_edge.checkpoint.compression_plan import load_plan, names_types
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.locking import one_writer, one_writer_of
from tenp_edge.checkpoint.plan_record import written_file
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.tensor_types import AUTO
from tenp_edge.disk import require_free
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import (
    ExportData,
    Exporter,
    ExportOptions,
    Manifest,
    exporter,
    fixed_lengths,
)
from tenp_edge.exporters.mixing import Mixer
from tenp_edge.forward.device import choose_device, choose_dtype
from tenp_edge.forward.text_batch import Domain
from tenp_edge.progress import QUIET, Progress, begin, expect
from tenp_edge.verbs.known_scores import known_statistics
from tenp_edge.verbs.options import CalibrationOptions, FileOptions
from tenp_edge.verbs.timing import pace_of, writing_seconds
from tenp_edge.verbs.token_chunks import calibration_domains, most_tokens

_RANGES, _WRITING = "ranges", "writing"


def export_options(options: FileOptions) -> ExportOptions:
    """What the exporter is told. Raises UserError for an importance matrix that is not there."""
    if options.imatrix_out is not None and (options.known.statistics is None or options.no_imatrix):
        raise UserError("--imatrix-out has no importance matrix to write", "--calibration WORK")
    knobs = options.knobs
    return ExportOptions(
        options.quant or _planned_quant(options),
        options.layout,
        imatrix=not options.no_imatrix,
        tensor_types=knobs.tensor_types,
        imatrix_file=None if options.imatrix_out is None else str(options.imatrix_out),
        shard_bytes=knobs.shard_bytes,
        latent_cache=knobs.latent_cache,
        lengths=fixed_lengths(knobs.batch, options.length, options.past),
        targets=knobs.targets,
    )


def _planned_quant(options: FileOptions) -> str:
    """The types of the plan, where it names some that the format can give, or the default."""
    writer, plan = exporter(options.format), options.plan
    if plan is None or not isinstance(writer, Mixer) or not names_types(plan):
        return writer.default_quant
    types = load_plan(plan).types
    known = types is None or not types.names.isdisjoint(writer.mixed_types)
    return AUTO if known and writer.rules(options.layout or "").mixes else writer.default_quant


def run_export(
    model: Path,
    target: Path,
    format: str,
    options: ExportOptions,
    plan: Path | None = None,
    progress: Progress = QUIET,
    dry_run: bool = False,
    statistics: Path | None = None,
    calibration: CalibrationOptions | None = None,
) -> Manifest:
    """Write ``target`` from a dense or pruned checkpoint, or from a checkpoint and a plan.

    Where activations get fixed scales, their ranges come from the directory ``statistics``, or are
    measured on the text of ``calibration`` and kept there.

    ``options.quant`` auto takes the types that the plan names. With ``statistics`` and
    ``options.imatrix`` it is quantised with an importance matrix, where the type has a use for one.
    With ``dry_run`` the manifest is returned and nothing is written.
    """
    checkpoint, writer = Checkpoint(model), exporter(format)
    loaded_plan = None if plan is None else load_plan(plan)
    if loaded_plan is not None and options.quant == AUTO:
        options = options.typed(loaded_plan.file_types)
    weighted = options.quant in writer.weighted_quants or options.imatrix_file is not None
    importance = None
    if statistics is not None and options.imatrix and weighted:
        importance = importance_of(checkpoint, known_statistics(statistics), loaded_plan)
    if checkpoint.config.raw.get("tenp"):
        # it was pruned by this plan already
        used = importance is not None or options.types is not None
        loaded_plan = None if used else loaded_plan
    options = replace(options, imatrix=importance is not None)
    source = ModelSource(checkpoint, loaded_plan)
    writer.check(source.config, options)
    manifest = writer.manifest(checkpoint, source.config, options)
    if dry_run:
        return manifest
    file = written_file(format, manifest.layout, options.quant)
    if source.planned_file not in (None, file):  # its budget is not this file's
        source = ModelSource(checkpoint, loaded_plan, budgeted=False)
    require_free(target.parent, manifest.file_bytes, target.name)
    chosen = calibration or CalibrationOptions()

    beside = statistics if statistics is not None and statistics.is_dir() else None

    expect(progress, _expected(source, manifest, writer, options, chosen, beside))

    def ranges() -> Ranges:
        begin(progress, _RANGES)
        return kept_ranges(source, beside) or ranges_into(
            source, calibration_domains(checkpoint, chosen, progress), chosen, beside, progress
        )

    with one_writer_of(target):
        return export_into(target, source, format, options, importance, ranges, progress)


def _expected(
    source: ModelSource,
    manifest: Manifest,
    writer: Exporter,
    options: ExportOptions,
    calibration: CalibrationOptions,
    beside: Path | None,
) -> dict[str, float]:
    """Seconds by stage."""
    checkpoint, ranges = source.checkpoint, 0.0
    if writer.needs_ranges(options) and kept_ranges(source, beside) is None:
        ranges = pace_of(checkpoint, calibration).forward(most_tokens(calibration))
    read = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    numbers = sum(prod(tensor.shape) for tensor in manifest.tensors)
    speed = writer.encoding_speed(options)
    return {
        _RANGES: ranges,
        _WRITING: writing_seconds(manifest.file_bytes, read, numbers, speed),
    }


def export_into(
    target: Path,
    source: ModelSource,
    format: str,
    options: ExportOptions,
    importance: Importance | None,
    ranges: Callable[[], Ranges],
    progress: Progress,
) -> Manifest:
    """Write ``source`` to ``target``; ``ranges`` is called where activations get fixed scales."""
    writer = exporter(format)
    data = ExportData(importance, ranges() if writer.needs_ranges(options) else None)
    begin(progress, _WRITING)
    return writer.write(source, options, target, data, progress)


def _ranges_file(directory: Path, source: ModelSource) -> Path:
    """Statistics serve many plans; every pruned model has ranges of its own."""
    return directory / f"ranges-{identity(source)[:12]}.json"


def kept_ranges(
    source: ModelSource, directory: Path | None, data: str | None = None
) -> Ranges | None:
    """Those of this very model (and ``data``) in ``directory``, measured before."""
    file = None if directory is None else _ranges_file(directory, source)
    if file is None or not file.is_file():
        return None
    ranges = load_ranges(file)
    same = ranges.model == identity(source) and data in (None, ranges.data)
    return ranges if same else None


def ranges_into(
    source: ModelSource,
    domains: list[Domain],
    options: CalibrationOptions,
    directory: Path | None,
    progress: Progress,
) -> Ranges:
    """The ranges on ``domains``, kept in ``directory`` where there is one."""
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device, source.checkpoint.dtype)
    ranges = measure_ranges(source, domains, device=device, dtype=dtype, progress=progress)
    if directory is not None:
        with one_writer(directory):
            ranges.save(_ranges_file(directory, source))
    return ranges
