"""The verbs as functions: each starts from files and ends in files, so it can be run alone,
repeated and resumed. `pipeline` has `compress`, which is all of them in a row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tenp_edge.calibration import calibrate
from tenp_edge.checkpoint import Checkpoint, write_text
from tenp_edge.coverage import coverage
from tenp_edge.data import (
    split_at,
)
from tenp_edge.devices import this_machine
from tenp_edge.disk import require_free
from tenp_edge.domains import calibration_domains, most_tokens, validation_domains
from tenp_edge.errors import UserError
from tenp_edge.forward import choose_device, choose_dtype
from tenp_edge.gradients import collect_gradients
from tenp_edge.importance import importance_of
from tenp_edge.inspection import inspect_model
from tenp_edge.locking import one_writer, one_writer_of
from tenp_edge.mended import Mended
from tenp_edge.mending import MendRules, mend
from tenp_edge.methods import method_named
from tenp_edge.options import (
    CalibrationOptions,
    CompressOptions,
    ComputeOptions,
    MeasureOptions,
    ValidationOptions,
    choose_profile,
    require_size,
)
from tenp_edge.plan import CompressionPlan, load_plan
from tenp_edge.planner import ExtraFiles, make_plan
from tenp_edge.probes import KEEPS, WAYS, probe
from tenp_edge.progress import QUIET, Progress
from tenp_edge.pruned import PrunedBy
from tenp_edge.ranges import Ranges, load_ranges
from tenp_edge.ranging import identity, measure_ranges
from tenp_edge.refine import (
    MakePlan,
    keep_slice,
    known_trials,
    load_slice,
    measure_on,
    refine,
    slice_digest,
    stored_slice,
)
from tenp_edge.registry import ExportData, ExportOptions, Manifest, exporter
from tenp_edge.source import ModelSource
from tenp_edge.spec import PlanOptions
from tenp_edge.statistics import Statistics, load_statistics, merge_statistics
from tenp_edge.text_batch import Domain
from tenp_edge.timing import operations_per_second, shown_seconds
from tenp_edge.trials import Records
from tenp_edge.typeverbs import CHEAP_SECONDS, costs_of, default_job, exactly, types_into
from tenp_edge.validation import ValidationReport, validate

_PROBES_IN_CALIBRATIONS = 4  # how much longer than the calibration the probes may take


def run_calibrate(
    model: Path,
    work: Path,
    options: CalibrationOptions,
    progress: Progress = QUIET,
    gradients: bool = False,
    types: bool = False,
) -> Statistics:
    """Collect statistics of ``model`` into ``work``; resumes, and returns finished work at once.

    ``gradients``: with a backward pass, for the scores that need one. ``types``: what every tensor
    type of a GGUF costs this model is measured too (`typeloss`).
    """
    checkpoint = Checkpoint(model)
    with one_writer(work):
        return _run_calibrate(checkpoint, work, options, progress, gradients, types)


def _run_calibrate(
    checkpoint: Checkpoint,
    work: Path,
    options: CalibrationOptions,
    progress: Progress,
    gradients: bool,
    types: bool,
) -> Statistics:
    drawn = calibration_domains(checkpoint, options, progress, hold_out=True)
    pairs = [split_at(domain, options.samples) for domain in drawn]
    domains, spare = [first for first, _ in pairs], [rest for _, rest in pairs]
    before = finished_at(work)
    statistics = calibrate_into(checkpoint, domains, work, options, progress, spare)
    if before and before == finished_at(work):
        more = "continuing: calibration done" if types or gradients else None
        progress.note(more or f"nothing to do: {work} is complete")
    probe_if_short(checkpoint, statistics, work, options, progress)
    if types:
        types_into(checkpoint, default_job(), statistics, work, options, progress)
    if not gradients:
        return statistics
    return collect_gradients(
        checkpoint,
        domains,
        statistics,
        work,
        device=options.device,
        dtype=options.dtype,
        progress=progress,
    )


def run_merge(parts: Sequence[Path], output: Path, force: bool = False) -> Statistics:
    """The sum of the statistics in ``parts``, in ``output``. Raises UserError where one text would
    be counted twice, and where ``output`` holds statistics already, unless ``force``."""
    if output.resolve() in [part.resolve() for part in parts]:
        raise UserError(f"{output} is one of those that are added up", "another -o")
    if (output / "statistics.json").is_file() and not force:
        raise UserError(
            f"{output} holds statistics already", "another -o, or --force to overwrite it"
        )
    found = [load_statistics(part) for part in parts]
    with one_writer(output):
        return merge_statistics(found, output)


def finished_at(work: Path) -> int:
    """When the statistics in ``work`` were finished, in nanoseconds; 0 where there are none."""
    file = work / "statistics.json"
    return file.stat().st_mtime_ns if file.is_file() else 0


def calibrate_into(
    checkpoint: Checkpoint,
    domains: list[Domain],
    work: Path,
    options: CalibrationOptions,
    progress: Progress,
    held_out: Sequence[Domain] = (),
) -> Statistics:
    """Statistics in ``work``, and beside them coverage.json: which experts saw too few tokens.

    ``held_out``, where there is any, is kept beside them for `refine`.
    """
    statistics = calibrate(
        checkpoint,
        domains,
        work,
        device=options.device,
        dtype=options.dtype,
        seed=options.seed,
        progress=progress,
    )
    write_text(work / "coverage.json", json.dumps(coverage(statistics).to_json(), indent=1) + "\n")
    if any(len(domain.tokens) for domain in held_out):
        keep_slice(work, held_out)
    return statistics


def probe_if_short(
    checkpoint: Checkpoint,
    statistics: Statistics,
    directory: Path,
    compute: CalibrationOptions,
    progress: Progress,
) -> None:
    """Measure the ways of sharing out width (`probes`) on the text held out in ``directory``.

    Where that is a matter of a moment or takes no longer than a few calibrations; nothing where no
    text was held out. What was measured before is not measured again.
    """
    if stored_slice(directory) is None or not statistics.has_elimination:
        return
    domains = load_slice(directory)
    seconds, calibrating = _probing_seconds(checkpoint, domains, compute)
    if seconds > max(CHEAP_SECONDS, _PROBES_IN_CALIBRATIONS * calibrating):
        progress.note(
            "how width is best shared out is not measured, which would take about "
            f"{shown_seconds(seconds)}; plan --refine measures it at one size"
        )
        return
    device, dtype = exactly(checkpoint, compute)

    def make(asked: PlanOptions) -> CompressionPlan:
        return make_plan(checkpoint, this_machine(), asked, statistics)

    measure = measure_on(
        checkpoint, domains, directory, device=device, dtype=dtype, progress=progress
    )
    probe(make, Records(directory, slice_digest(domains)), measure, compute.seed)


def _probing_seconds(
    checkpoint: Checkpoint, domains: Sequence[Domain], compute: CalibrationOptions
) -> tuple[float, float]:
    """About how long the probes take, and the calibration."""
    operations = 2 * inspect_model(checkpoint.path).active_parameters
    per_token = operations / operations_per_second(*exactly(checkpoint, compute))
    tokens = sum(int(domain.lengths.sum()) for domain in domains)
    return len(KEEPS) * (1 + len(WAYS)) * tokens * per_token, most_tokens(compute) * per_token


def run_plan(
    model: Path | Checkpoint,
    options: PlanOptions,
    statistics: Path | Statistics | None = None,
    compute: ComputeOptions | None = None,
    progress: Progress = QUIET,
    *,
    beside: Path | None = None,
    extra_files: ExtraFiles | None = None,
) -> CompressionPlan:
    """Decide the widths (and, with statistics, the neurons). Runs the model only to refine.

    ``beside``: where the text held out from the calibration lies, with what was measured on it; the
    directory of ``statistics`` unless told otherwise. ``extra_files`` as in `planner.make_plan`.
    """
    checkpoint = model if isinstance(model, Checkpoint) else Checkpoint(model)
    require_size(options)
    profile, compute = choose_profile(options), compute or ComputeOptions()
    options = replace(options, seed=compute.seed, frontier=True)
    if isinstance(statistics, Path):
        beside = beside or statistics
        statistics = load_statistics(statistics, checkpoint.fingerprint, checkpoint.config)
    if options.refine and (statistics is None or beside is None):
        raise UserError(
            "--refine measures plans, which need neurons",
            "--calibration WORK (tenp-edge calibrate)",
        )

    def make(asked: PlanOptions) -> CompressionPlan:
        return make_plan(
            checkpoint,
            profile,
            asked,
            statistics,
            extra_files,
            measured=known_trials(beside) if beside else (),
            confirm=asked.frontier,
            costs=costs_of(checkpoint, beside) if beside else None,
        )

    if options.refine and beside is not None:
        return refine_into(checkpoint, options, make, beside, compute, progress)
    return make(options)


def mend_rules(options: CompressOptions) -> MendRules | None:
    """What the options ask for; None where no weight is to change."""
    by_default = method_named(options.plan.method).repaired
    repair = by_default if options.repair is None else options.repair
    if options.repair_ridge is not None and not repair:
        raise UserError("repair-ridge says how to repair, and nothing is repaired", "--repair")
    if not repair and options.heal is None:
        return None
    ridge = {} if options.repair_ridge is None else {"repair_ridge": options.repair_ridge}
    rules = MendRules(repair=repair, heal=options.heal, **ridge)
    rules.check()
    return rules


def refine_into(
    checkpoint: Checkpoint,
    options: PlanOptions,
    make: MakePlan,
    directory: Path,
    compute: ComputeOptions,
    progress: Progress,
) -> CompressionPlan:
    device, dtype = exactly(checkpoint, compute)
    with one_writer(directory):
        return refine(
            checkpoint, options, make, directory, device=device, dtype=dtype, progress=progress
        )


def mend_into(
    checkpoint: Checkpoint,
    plan: CompressionPlan,
    domains: Sequence[Domain],
    directory: Path,
    rules: MendRules,
    options: CalibrationOptions,
    progress: Progress,
) -> Mended | None:
    """What ``rules`` make of the plan's model, in ``directory``; None where there is nothing to
    mend, which is said."""
    if plan.keep_ratio == 1.0:
        progress.note("nothing was cut: there is nothing to repair or to heal")
        return None
    if rules.heal is None and all(
        w in (0, plan.full_width) for r in plan.widths.values() for w in r
    ):
        progress.note("every expert is whole or removed: there is nothing to repair")
        return None
    found = mend(
        checkpoint,
        plan,
        domains,
        directory,
        rules,
        seed=options.seed,
        device=options.device,
        dtype=options.dtype,
        progress=progress,
    )
    layers = found.info["layers"].values()
    before, after = (
        sum(row[name] for row in layers) / len(layers) for name in ("loss_cut", "loss")
    )
    progress.note(
        f"mended {len(found)} tensors in {found.info['seconds']:.0f} s: "
        f"mean loss of a layer {before:.2g} -> {after:.2g}"
    )
    return found


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

    With ``statistics`` and ``options.imatrix`` it is quantised with an importance matrix, where the
    type has a use for one. With ``dry_run`` the manifest is returned and nothing is written.
    """
    checkpoint, writer = Checkpoint(model), exporter(format)
    given = None if plan is None else load_plan(plan)
    weighted = options.quant in writer.weighted_quants or options.imatrix_file is not None
    importance = None
    if statistics is not None and options.imatrix and weighted:
        importance = importance_of(checkpoint, load_statistics(statistics), given)
    if checkpoint.config.raw.get("tenp"):
        given = None if importance is not None else given  # it was pruned by this plan already
    options = replace(options, imatrix=importance is not None)
    source = ModelSource(checkpoint, given)
    writer.check(source.config, options)
    manifest = writer.manifest(checkpoint, source.config, options)
    if dry_run:
        return manifest
    require_free(target.parent, manifest.file_bytes, target.name)
    with one_writer_of(target):
        ranges = None
        if writer.needs_ranges(options):
            chosen = calibration or CalibrationOptions()
            ranges = kept_ranges(source, statistics) or ranges_into(
                source,
                calibration_domains(checkpoint, chosen, progress),
                chosen,
                statistics,
                progress,
            )
        return writer.write(source, options, target, ExportData(importance, ranges), progress)


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
    found = load_ranges(file)
    same = found.model == identity(source) and data in (None, found.data)
    return found if same else None


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
    found = measure_ranges(source, domains, device=device, dtype=dtype, progress=progress)
    if directory is not None:
        with one_writer(directory):
            found.save(_ranges_file(directory, source))
    return found


def run_validate(
    reference: Path,
    candidate: Path,
    options: ValidationOptions,
    compute: ComputeOptions | None = None,
    progress: Progress = QUIET,
    pruned_by: PrunedBy | None = None,
    measure: MeasureOptions | None = None,
) -> ValidationReport:
    """Compare ``candidate`` with ``reference`` on text of named domains.

    ``pruned_by``: where the pruned model is, when that is not beside ``candidate``; ``measure``:
    the run of a GGUF whose peak memory is measured.
    """
    compute, checkpoint = compute or ComputeOptions(), Checkpoint(reference)
    threads = options.threads or this_machine().threads
    limit = checkpoint.config.max_position_embeddings
    memory_run = (measure or MeasureOptions()).run(limit, threads)
    domains = validation_domains(checkpoint, options, compute.seed, progress)
    return validate(
        reference,
        candidate,
        domains,
        device=compute.device,
        dtype=compute.dtype,
        threads=options.threads,
        twin=options.twin,
        split=options.split,
        pruned_by=pruned_by,
        memory_run=memory_run,
        progress=progress,
    )
