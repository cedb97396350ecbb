"""The verbs as functions, and ``compress``, which is all of them in a row.

Every stage starts from files and ends in files, so each can be run alone, repeated and resumed.
`RunDirectory` knows which are done.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tenp_edge.calibration import calibrate, coverage
from tenp_edge.checkpoint import Checkpoint, write_text
from tenp_edge.compress import checkpoint_files, is_other_checkpoint, write_checkpoint
from tenp_edge.data import (
    Domain,
    default_texts,
    load_texts,
    load_tokenizer,
    make_domains,
    parse_data,
    split_at,
)
from tenp_edge.devices import this_machine
from tenp_edge.disk import require_free
from tenp_edge.errors import UserError
from tenp_edge.footprint import MemoryRun
from tenp_edge.forward import choose_device, choose_dtype
from tenp_edge.gradients import collect_gradients
from tenp_edge.importance import Importance, importance_of
from tenp_edge.inspection import inspect_model
from tenp_edge.options import (
    CalibrationOptions,
    CompressOptions,
    MeasureOptions,
    PlanOptions,
    ValidationOptions,
    choose_profile,
    plan_request,
)
from tenp_edge.plan import CompressionPlan, load_plan
from tenp_edge.planner import PlanRequest, make_plan, make_target
from tenp_edge.pricing import Priced, Pricer
from tenp_edge.progress import QUIET, Progress
from tenp_edge.pruned import PrunedBy
from tenp_edge.ranges import Ranges, load_ranges
from tenp_edge.ranging import data_digest, identity, measure_ranges
from tenp_edge.refine import SLICE_SAMPLES, MakePlan, keep_slice, measured_losses, refine
from tenp_edge.registry import ExportOptions, FixedLengths, Manifest, exporter, placed_files
from tenp_edge.source import ModelSource
from tenp_edge.statistics import Statistics, load_statistics
from tenp_edge.timing import estimate
from tenp_edge.validation import ValidationReport, load_report, validate
from tenp_edge.workdir import RunDirectory, key_of

WORTH_SAYING_SECONDS = 15
HELD_OUT_SHARE = 5  # with one's own data, at least a fifth of the chunks is kept for validation


# -- data ------------------------------------------------------------------------------------------


def calibration_domains(
    checkpoint: Checkpoint,
    options: CalibrationOptions,
    progress: Progress = QUIET,
    spare: int = 0,
) -> list[Domain]:
    """The token chunks that ``options`` describe: the user's files, or the standard library.

    Up to ``spare`` more chunks follow those of each domain, to be held out.
    """
    _check_counts(checkpoint, options.samples, options.seq_len, "--seq-len")
    tokenizer = load_tokenizer(checkpoint.path)
    if not options.data:
        progress.note(
            "calibrating on the standard library's text; your own prompts give a better model "
            "(--data name=file.jsonl)"
        )
        texts: Mapping[str, Any] = default_texts("calibration")
    else:
        files = parse_data(options.data)
        texts = {name: load_texts(path, tokenizer, progress) for name, path in files.items()}
    return make_domains(
        texts, tokenizer, options.samples, options.seq_len, options.seed, progress, spare
    )


def validation_domains(
    checkpoint: Checkpoint, options: ValidationOptions, seed: int = 0
) -> list[Domain]:
    """Chunks to validate on: the user's files, or held-out text of the standard library."""
    _check_counts(checkpoint, options.samples, options.seq_len, "--eval-seq-len")
    tokenizer = load_tokenizer(checkpoint.path)
    if options.data:
        files = parse_data(options.data)
        texts: Mapping[str, Any] = {n: load_texts(path, tokenizer) for n, path in files.items()}
    else:
        texts = default_texts("heldout")
    return make_domains(texts, tokenizer, options.samples, options.seq_len, seed)


def _tokens(options: CalibrationOptions | ValidationOptions) -> int:
    """Tokens that will be drawn at most; the built-in text has two domains."""
    return (len(options.data) or 2) * options.samples * options.seq_len


def split_domain(domain: Domain, wanted: int) -> tuple[Domain, Domain]:
    """Cut ``wanted`` chunks (at most a fifth of a short domain) off the end for validation."""
    held = min(wanted, max(1, len(domain.tokens) // HELD_OUT_SHARE))
    cut = len(domain.tokens) - held
    first = Domain(domain.name, domain.tokens[:cut], domain.lengths[:cut])
    return first, Domain(domain.name, domain.tokens[cut:], domain.lengths[cut:])


def _check_counts(checkpoint: Checkpoint, samples: int, seq_len: int, flag: str) -> None:
    """Refuse before any text is read."""
    if samples < 1:
        raise UserError(f"{samples} samples are none", "8 or more; 32 is the default")
    limit = checkpoint.config.max_position_embeddings
    if not 2 <= seq_len <= limit:
        raise UserError(
            f"{flag} {seq_len} is outside 2..{limit}, the model's context", f"{flag} {limit}"
        )


# -- the verbs -------------------------------------------------------------------------------------


def run_calibrate(
    model: Path,
    work: Path,
    options: CalibrationOptions,
    progress: Progress = QUIET,
    gradients: bool = False,
) -> Statistics:
    """Collect statistics of ``model`` into ``work``; resumes, and returns finished work at once.

    ``gradients``: with a backward pass, for the scores that need one.
    """
    checkpoint = Checkpoint(model)
    drawn = calibration_domains(checkpoint, options, progress, spare=SLICE_SAMPLES)
    pairs = [split_at(domain, options.samples) for domain in drawn]
    domains, spare = [first for first, _ in pairs], [rest for _, rest in pairs]
    statistics = _calibrate(checkpoint, domains, work, options, progress, spare)
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


def _calibrate(
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


def run_plan(
    model: Path,
    options: PlanOptions,
    statistics: Path | None = None,
    seed: int = 0,
    compute: CalibrationOptions | None = None,
    progress: Progress = QUIET,
) -> CompressionPlan:
    """Decide the widths (and, with statistics, the neurons). Runs the model only to refine."""
    checkpoint = Checkpoint(model)
    profile = choose_profile(options)
    request = plan_request(options, profile, seed)
    if statistics is None:
        if options.refine:
            raise UserError(
                "--refine measures plans, which need neurons",
                "--calibration WORK (tenp-edge calibrate)",
            )
        return make_plan(checkpoint, profile, request, confirm=True)
    stats = load_statistics(statistics, checkpoint.fingerprint)

    def make(asked: PlanRequest) -> CompressionPlan:
        known = tuple(measured_losses(statistics))
        return make_plan(checkpoint, profile, asked, stats, measured=known, confirm=asked.frontier)

    if not options.refine:
        return make(request)
    wanted = compute or CalibrationOptions()
    return _refine(checkpoint, request, make, statistics, wanted, progress)


def _refine(
    checkpoint: Checkpoint,
    request: PlanRequest,
    make: MakePlan,
    directory: Path,
    compute: CalibrationOptions,
    progress: Progress,
) -> CompressionPlan:
    """In float32 unless asked otherwise, as in validate: bf16 flips near-tied routing."""
    device = choose_device(compute.device)
    kind = "float32" if compute.dtype == "auto" else compute.dtype
    dtype = choose_dtype(kind, device, checkpoint.dtype)
    return refine(
        checkpoint, request, make, directory, device=device, dtype=dtype, progress=progress
    )


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
    source = ModelSource(checkpoint, given, importance)
    writer.check(source.config, options)
    manifest = writer.manifest(checkpoint, source.config, options)
    if dry_run:
        return manifest
    require_free(target.parent, manifest.file_bytes, target.name)
    if writer.needs_ranges(options):
        chosen = calibration or CalibrationOptions()
        source.ranges = _kept_ranges(source, statistics) or _measure_ranges(
            source, calibration_domains(checkpoint, chosen, progress), chosen, statistics, progress
        )
    return writer.write(source, options, target, progress)


def _ranges_file(directory: Path, source: ModelSource) -> Path:
    """Statistics serve many plans; every pruned model has ranges of its own."""
    return directory / f"ranges-{identity(source)[:12]}.json"


def _kept_ranges(
    source: ModelSource, directory: Path | None, data: str | None = None
) -> Ranges | None:
    """Those of this very model (and ``data``) in ``directory``, measured before."""
    file = None if directory is None else _ranges_file(directory, source)
    if file is None or not file.is_file():
        return None
    found = load_ranges(file)
    same = found.model == identity(source) and data in (None, found.data)
    return found if same else None


def _measure_ranges(
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
        found.save(_ranges_file(directory, source))
    return found


def run_validate(
    reference: Path,
    candidate: Path,
    options: ValidationOptions,
    calibration: CalibrationOptions | None = None,
    progress: Progress = QUIET,
    pruned_by: PrunedBy | None = None,
    measure: MeasureOptions | None = None,
) -> ValidationReport:
    """Compare ``candidate`` with ``reference`` on text of named domains.

    ``pruned_by``: where the pruned model is, when that is not beside ``candidate``; ``measure``:
    the run of a GGUF whose peak memory is measured.
    """
    compute, checkpoint = calibration or CalibrationOptions(), Checkpoint(reference)
    threads = options.threads or this_machine().threads
    limit = checkpoint.config.max_position_embeddings
    memory_run = (measure or MeasureOptions()).run(limit, threads)
    domains = validation_domains(checkpoint, options, compute.seed)
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


# -- compress --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompressResult:
    """What ``compress`` made: the plan as written, the report (None with no_validate)."""

    output: Path
    plan: CompressionPlan
    report: ValidationReport | None

    def to_json(self) -> dict[str, Any]:
        report = None if self.report is None else self.report.to_json()
        return {"output": str(self.output), "plan": self.plan.to_json(), "validation": report}


def run_compress(
    model: Path, output: Path, options: CompressOptions, progress: Progress = QUIET
) -> CompressResult:
    """Calibrate, plan, slice, export and validate ``model`` into ``output``; resumes.

    Everything that can be refused is refused before the first long step: the budget is planned by
    bytes alone, the disk is checked, and the exporter is asked whether it can write this model.
    """
    checkpoint = Checkpoint(model)
    if checkpoint.left_out:
        progress.note(
            f"{len(checkpoint.left_out)} tensors of multi-token prediction layers are left out"
        )
    run = _Compress(checkpoint, output, options, progress)
    draft = run.draft_plan()
    run.require_disk(draft)
    run.open()
    run.note_time(draft)
    statistics = run.statistics()
    plan = run.plan(statistics)
    importance = Importance(statistics, plan) if plan.recipe["imatrix"] else None
    if not options.skip_checkpoint:
        run.write_checkpoint(plan)
    run.export(plan, importance)
    report = None if options.no_validate else run.validate(plan)
    run.directory.complete()
    return CompressResult(output, plan, report)


class _Compress:
    """The stages of one run: what each depends on is its key, what it wrote is its record."""

    directory: RunDirectory

    def __init__(
        self, checkpoint: Checkpoint, output: Path, options: CompressOptions, progress: Progress
    ) -> None:
        self.checkpoint, self.output, self.options = checkpoint, output, options
        self.progress = progress
        self.profile = choose_profile(options.plan)
        self.request = plan_request(options.plan, self.profile, options.calibration.seed)

    # What is decided before anything is written.

    def draft_plan(self) -> CompressionPlan:
        """A plan by bytes alone. Free widths need scores; a trapezoid of their size stands in."""
        free = self.request.method == "free"
        request = replace(self.request, method="tenp") if free else self.request
        return self._make_plan(None, request)

    def require_disk(self, draft: CompressionPlan) -> None:
        """UserError unless everything not yet written fits, a twin for the validation included."""
        missing = self._missing(draft)
        with_twin = self.options.validation.twin and not self.options.no_validate
        twin = self._padded(draft).manifest.file_bytes if with_twin else 0
        what = f"this run ({', '.join((*missing, 'the padded twin') if twin else missing)})"
        require_free(self.output, sum(missing.values()) + twin, what)

    def note_time(self, draft: CompressionPlan) -> None:
        """Say how long it will take, when that is more than a moment."""
        options, checkpoint = self.options, self.checkpoint
        summary, missing = inspect_model(checkpoint.path), self._missing(draft)
        device = choose_device(options.calibration.device)
        writer = exporter(draft.recipe["format"])
        exported = all(name.startswith("checkpoint/") for name in missing)
        kept = round(draft.recipe["model_retention"] * summary.parameters)
        expected = estimate(
            active_parameters=summary.active_parameters,
            model_bytes=sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
            written_bytes=sum(missing.values()),
            calibration_tokens=0 if options.statistics else _tokens(options.calibration),
            validation_tokens=0 if options.no_validate else _tokens(options.validation),
            validation_forwards=4 if options.validation.split else 2,
            quantised_parameters=0 if exported else kept,
            encoding_speed=writer.encoding_speed(self._export_options(draft)),
            device=device,
            dtype=choose_dtype(options.calibration.dtype, device, checkpoint.dtype),
        )
        if expected.total >= WORTH_SAYING_SECONDS:
            self.progress.note(str(expected))

    def _missing(self, draft: CompressionPlan) -> dict[str, int]:
        """Bytes of every planned file that is not there yet."""
        return {k: size for k, size in draft.files.items() if not self._is_there(k, size)}

    def _is_there(self, name: str, size: int) -> bool:
        file = self.output / name
        return file.is_file() and file.stat().st_size == size

    def open(self) -> None:
        command = key_of(asdict(replace(self.options, force=False)))
        self.directory = RunDirectory(
            self.output, self.checkpoint.fingerprint, command, self.options.force
        )

    # The stages.

    def statistics(self) -> Statistics:
        if self.options.statistics is not None:
            return load_statistics(self.options.statistics, self.checkpoint.fingerprint)
        domains, _, spare = self._domains
        options = self.options.calibration
        work = self.output / "calibration"
        return _calibrate(self.checkpoint, domains, work, options, self.progress, spare)

    def plan(self, statistics: Statistics) -> CompressionPlan:
        file, options = self.output / "plan.json", self.options
        # By what it is made from: the process that its memory counts differs by pages each time.
        inputs = asdict(self.request), asdict(self.profile), statistics.info
        key = key_of(*inputs, options.skip_checkpoint, options.plan.refine, options.successive)
        if self.directory.done("plan", key):
            return load_plan(file)
        plan = self._chosen_plan(statistics)
        if options.successive and plan.keep_ratio < 1:
            plan = self._chosen_plan(self._after(plan))
        plan.save(file)
        self.directory.finish("plan", key, [file, file.with_suffix(".safetensors")])
        return plan

    def _after(self, plan: CompressionPlan) -> Statistics:
        """The calibration again, every layer on what ``plan`` leaves of the layers before it."""
        domains, _, _ = self._domains
        options = self.options.calibration
        return calibrate(
            self.checkpoint,
            domains,
            self.output / "calibration-pruned",
            device=options.device,
            dtype=options.dtype,
            seed=options.seed,
            progress=self.progress,
            plan=plan,
        )

    def _chosen_plan(self, statistics: Statistics) -> CompressionPlan:
        options = self.options
        if not options.plan.refine:
            return self._make_plan(statistics)
        return _refine(
            self.checkpoint,
            self.request,
            lambda asked: self._make_plan(statistics, asked),
            self._calibration,
            options.calibration,
            self.progress,
        )

    def write_checkpoint(self, plan: CompressionPlan) -> None:
        target = self.output / "checkpoint"

        def write() -> list[Path]:
            if is_other_checkpoint(target, plan.digest):  # of an unfinished run with other settings
                shutil.rmtree(target)
            write_checkpoint(ModelSource(self.checkpoint, plan), target, self.progress)
            return [file for file in target.iterdir() if file.is_file()]

        self._stage("checkpoint", key_of(plan.digest), write)

    def export(self, plan: CompressionPlan, importance: Importance | None) -> None:
        target, options = self._target(plan), self._export_options(plan)

        def write() -> list[Path]:
            writer = exporter(plan.recipe["format"])
            source = ModelSource(self.checkpoint, plan, importance)
            if writer.needs_ranges(options):
                source.ranges = self._ranges(source)
            manifest = writer.write(source, options, target, self.progress)
            return [self.output / name for name in placed_files(writer, manifest)]

        matrix = None if importance is None else importance.digest
        self._stage("export", key_of(plan.digest, asdict(options), matrix), write)

    def validate(self, plan: CompressionPlan) -> ValidationReport:
        file = self.output / "validation.json"
        options = self.options
        key = key_of(plan.digest, asdict(options.validation), asdict(options.calibration))
        if self.directory.done("validation", key):
            return load_report(file)
        _, held_out, _ = self._domains
        report = validate(
            self.checkpoint.path,
            self._target(plan),
            held_out,
            device=options.calibration.device,
            dtype=options.calibration.dtype,
            threads=options.validation.threads,
            twin=options.validation.twin,
            split=options.validation.split,
            predicted_peak_rss=self._predicted_peak_rss(plan),
            memory_run=self._memory_run(plan),
            work=self.output,
            progress=self.progress,
        )
        write_text(file, json.dumps(report.to_json(), indent=1) + "\n")
        self.directory.finish("validation", key, [file])
        return report

    # Helpers.

    def _stage(self, name: str, key: str, write: Callable[[], list[Path]]) -> None:
        if not self.directory.done(name, key):
            self.directory.finish(name, key, write())

    def _make_plan(
        self, statistics: Statistics | None, request: PlanRequest | None = None
    ) -> CompressionPlan:
        extra = None if self.options.skip_checkpoint else self._checkpoint_files
        asked = request or self.request
        measured = tuple(measured_losses(self._calibration)) if statistics else ()
        return make_plan(
            self.checkpoint,
            self.profile,
            asked,
            statistics,
            extra,
            measured=measured,
            confirm=asked.frontier,
        )

    @property
    def _calibration(self) -> Path:
        return self.options.statistics or self.output / "calibration"

    def _checkpoint_files(self, plan: CompressionPlan) -> dict[str, int]:
        """Exact size of every weight file of the pruned checkpoint."""
        files = checkpoint_files(ModelSource(self.checkpoint, plan))
        return {f"checkpoint/{name}": size for name, size in files.items()}

    def _target(self, plan: CompressionPlan) -> Path:
        return self.output / exporter(plan.recipe["format"]).target

    def _export_options(self, plan: CompressionPlan) -> ExportOptions:
        recipe = plan.recipe
        rules = tuple(recipe["tensor_types"])
        return ExportOptions(
            recipe["quant"],
            recipe["layout"],
            recipe["imatrix"],
            rules,
            shard_bytes=recipe["shard_bytes"],
            latent_cache=recipe["latent_cache"],
            lengths=None if recipe["lengths"] is None else FixedLengths(**recipe["lengths"]),
            targets=tuple(recipe["targets"]),
        )

    def _ranges(self, source: ModelSource) -> Ranges:
        directory = self.options.statistics or self.output / "calibration"
        domains, _, _ = self._domains
        return _kept_ranges(source, directory, data_digest(domains)) or _measure_ranges(
            source, domains, self.options.calibration, directory, self.progress
        )

    def _predicted_peak_rss(self, plan: CompressionPlan) -> int | None:
        """Of the run that validation measures, which is on this machine."""
        measured_here = self.profile.runtime_overhead_bytes is None
        return int(plan.memory["total_bytes"]) if measured_here else None

    def _padded(self, plan: CompressionPlan) -> Priced:
        request = replace(self.request, layout="padded", quant=plan.recipe["quant"])
        positions = self.checkpoint.config.max_position_embeddings
        return Pricer(self.checkpoint, make_target(self.profile, request, positions))(plan.widths)

    def _memory_run(self, plan: CompressionPlan) -> MemoryRun:
        chosen = {name: plan.memory[name] for name in ("context", "ubatch", "kv_type")}
        threads = self.options.validation.threads or self.profile.threads
        return MemoryRun(**chosen, threads=threads)

    @cached_property
    def _domains(self) -> tuple[list[Domain], list[Domain], list[Domain]]:
        """Chunks for calibration, for validation, and for refining: none in two of them."""
        calibration, validation = self.options.calibration, self.options.validation
        own_data_only = bool(calibration.data) and not validation.data
        more = validation.samples if own_data_only else 0
        wanted = replace(calibration, samples=calibration.samples + more)
        drawn = calibration_domains(self.checkpoint, wanted, self.progress, SLICE_SAMPLES)
        pairs = [split_at(domain, wanted.samples) for domain in drawn]
        used, spare = [first for first, _ in pairs], [rest for _, rest in pairs]
        if not own_data_only:
            held_out = validation_domains(self.checkpoint, validation, calibration.seed)
            return used, held_out, spare
        split = [split_domain(domain, validation.samples) for domain in used]
        return [first for first, _ in split], [second for _, second in split], spare
