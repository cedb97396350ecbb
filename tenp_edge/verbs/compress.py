"""``compress``: all the verbs in a row, in a directory that knows which of them are done."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tenp_edge.calibration.activation_ranges import Ranges
from tenp_edge.calibration.collect import calibrate
from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.range_measuring import measured_text
from tenp_edge.calibration.storage import Statistics, load_statistics
from tenp_edge.checkpoint.compression_plan import CompressionPlan, load_plan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.locking import one_writer
from tenp_edge.checkpoint.overlay import DIRECTORY, Mended
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import (
    checkpoint_files,
    is_other_checkpoint,
    reopen,
    write_checkpoint,
)
from tenp_edge.disk import require_free, write_text
from tenp_edge.evaluation.type_sensitivity import TypeJob
from tenp_edge.evaluation.validation import ValidationReport, load_report, validate
from tenp_edge.exporters.base import ExportData, ExportOptions, FixedLengths, exporter, placed_files
from tenp_edge.forward.device import choose_device, choose_dtype
from tenp_edge.forward.text_batch import Domain
from tenp_edge.models.inspection import inspect_model
from tenp_edge.planning.methods import method_named
from tenp_edge.planning.pricing import Priced, Pricer
from tenp_edge.planning.spec import PlanOptions
from tenp_edge.planning.target import make_target, resolve
from tenp_edge.planning.tensor_types import measurable
from tenp_edge.progress import QUIET, Progress
from tenp_edge.recovery.recover import mended_bytes
from tenp_edge.runtime.memory.footprint import MemoryRun
from tenp_edge.verbs.calibrate import calibrate_into, finished_at, probe_if_short
from tenp_edge.verbs.export import kept_ranges, ranges_into
from tenp_edge.verbs.measure_types import costs_of, types_if_cheap
from tenp_edge.verbs.options import CompressOptions, choose_profile, require_size
from tenp_edge.verbs.plan import run_plan
from tenp_edge.verbs.recipe_files import FILE as RECIPE
from tenp_edge.verbs.recipe_files import write_recipe
from tenp_edge.verbs.repair import mend_into, mend_rules
from tenp_edge.verbs.run_directory import RunDirectory, key_of
from tenp_edge.verbs.timing import WORTH_SAYING_SECONDS, estimate
from tenp_edge.verbs.token_chunks import compress_domains, most_tokens


@dataclass(frozen=True)
class CompressResult:
    """What ``compress`` made: the plan as written, the report (None with no_validate), and what
    was mended after the cut, if anything."""

    output: Path
    plan: CompressionPlan
    report: ValidationReport | None
    mended: Mended | None = None

    def to_json(self) -> dict[str, Any]:
        report = None if self.report is None else self.report.to_json()
        found = {"output": str(self.output), "plan": self.plan.to_json(), "validation": report}
        return found if self.mended is None else {**found, "mended": dict(self.mended.info)}


def run_compress(
    model: Path, output: Path, options: CompressOptions, progress: Progress = QUIET
) -> CompressResult:
    """Calibrate, plan, slice, export and validate ``model`` into ``output``; resumes.

    Everything that can be refused is refused before the first long step: the budget is planned by
    bytes alone, the disk is checked, and the exporter is asked whether it can write this model.
    """
    checkpoint = Checkpoint(model)
    if checkpoint.left_out:
        progress.note(f"{checkpoint.left_out_text} are left out")
    run = _Compress(checkpoint, output, options, progress)
    draft = run.draft_plan()
    run.require_disk(draft)
    with one_writer(output):
        return _run_stages(run, draft)


def _run_stages(run: _Compress, draft: CompressionPlan) -> CompressResult:
    run.open()
    run.draw_text()
    run.note_time(draft)
    checkpoint, options = run.checkpoint, run.options
    statistics = run.statistics()
    run.measure_types(statistics)
    plan = run.plan(statistics)
    importance = Importance(statistics, plan) if plan.record.imatrix else None
    mended = run.mend(plan)
    source = ModelSource(checkpoint, plan, mended=mended)
    if not options.skip_checkpoint:
        run.write_checkpoint(source)
    run.export(plan, source, importance)
    report = None if options.no_validate else run.validate(plan, source)
    run.end()
    return CompressResult(run.output, plan, report, mended)


class _Compress:
    """The stages of one run: what each depends on is its key, what it wrote is its record."""

    directory: RunDirectory
    _calibrated: int

    def __init__(
        self, checkpoint: Checkpoint, output: Path, options: CompressOptions, progress: Progress
    ) -> None:
        self.checkpoint, self.output, self.options = checkpoint, output, options
        self.progress = progress
        self.profile = choose_profile(options.plan)
        require_size(options.plan)
        self.request = replace(options.plan, seed=options.calibration.seed, frontier=True)
        self.rules = mend_rules(options)

    # What is decided before anything is written.

    def draft_plan(self) -> CompressionPlan:
        """A plan by bytes alone. Free widths need scores; a trapezoid of their size stands in."""
        method = method_named(self.request.method)
        return self._planned(
            None, replace(self.request, method=method.draft or method.name, refine=False)
        )

    def require_disk(self, draft: CompressionPlan) -> None:
        """UserError unless everything not yet written fits, a twin for the validation included."""
        missing = self._missing(draft)
        with_twin = self.options.validation.twin and not self.options.no_validate
        twin = self._padded(draft).manifest.file_bytes if with_twin else 0
        what = f"this run ({', '.join((*missing, 'the padded twin') if twin else missing)})"
        mending = 0 if self.rules is None else mended_bytes(self.checkpoint, draft, self.rules)
        require_free(self.output, sum(missing.values()) + twin + mending, what)

    def note_time(self, draft: CompressionPlan) -> None:
        """Say how long it will take, when that is more than a moment."""
        if self.directory.complete:
            return
        options, checkpoint = self.options, self.checkpoint
        summary, missing = inspect_model(checkpoint.path), self._missing(draft)
        device = choose_device(options.calibration.device)
        writer = exporter(draft.record.format)
        exported = all(name.startswith("checkpoint/") for name in missing)
        kept = round(draft.record.model_retention * summary.parameters)
        expected = estimate(
            active_parameters=summary.active_parameters,
            model_bytes=sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
            written_bytes=sum(missing.values()),
            calibration_tokens=0 if self._calibrated else most_tokens(options.calibration),
            validation_tokens=0 if options.no_validate else most_tokens(options.validation),
            validation_forwards=4 if options.validation.split else 2,
            quantised_parameters=0 if exported else kept,
            encoding_speed=writer.encoding_speed(self._export_options(draft)),
            device=device,
            dtype=choose_dtype(options.calibration.dtype, device, checkpoint.dtype),
            mending_forwards=0 if self.rules is None else self.rules.forwards,
            mended_tokens=most_tokens(options.calibration),
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
        command = key_of(asdict(replace(self.options, force=False, output=None)))
        force, progress = self.options.force, self.progress
        found = RunDirectory(self.output, self.checkpoint.fingerprint, command, force, progress)
        self.directory = found
        write_recipe(self.output / RECIPE, self.options, output=self.output)
        self._calibrated = finished_at(self._calibration)
        done = ["calibration"] if self._calibrated and not self.options.statistics else []
        done += found.done_before()
        if done and not found.complete:
            progress.note(f"continuing: {', '.join(f'{stage} done' for stage in done)}")

    def draw_text(self) -> None:
        """Read the text before anything is promised: what is wrong with it is said first."""
        if self.options.statistics is None or not self.options.no_validate:
            self._domains  # noqa: B018

    def end(self) -> None:
        calibrated = finished_at(self._calibration) != self._calibrated
        if self.directory.complete and not self.directory.worked and not calibrated:
            self.progress.note(f"nothing to do: {self.output} is complete")
        self.directory.end()

    # The stages.

    def statistics(self) -> Statistics:
        if self.options.statistics is not None:
            checkpoint = self.checkpoint
            return load_statistics(
                self.options.statistics, checkpoint.fingerprint, checkpoint.config
            )
        domains, _, spare = self._domains
        options = self.options.calibration
        work = self.output / "calibration"
        found = calibrate_into(self.checkpoint, domains, work, options, self.progress, spare)
        if method_named(self.request.method).probed:
            probe_if_short(self.checkpoint, found, work, options, self.progress)
        return found

    def measure_types(self, statistics: Statistics) -> None:
        """What the types cost, where one is to be chosen and it is quickly measured."""
        positions = self.checkpoint.config.max_position_embeddings
        spec = resolve(self.request, self.profile, positions)
        options = replace(spec.target.options, imatrix=self.request.imatrix)
        job = TypeJob(spec.target.exporter, options, measurable(spec))
        where, compute = self._calibration, self.options.calibration
        types_if_cheap(self.checkpoint, job, statistics, where, compute, self.progress)

    def plan(self, statistics: Statistics) -> CompressionPlan:
        file, options = self.output / "plan.json", self.options
        # By what it is made from: the process that its memory counts differs by pages each time.
        inputs = asdict(self.request), asdict(self.profile), statistics.info
        costs = costs_of(self.checkpoint, self._calibration)
        types = () if costs is None else (costs.to_json(),)
        key = key_of(
            *inputs, options.skip_checkpoint, options.plan.refine, options.successive, *types
        )
        if self.directory.done("plan", key):
            return load_plan(file)
        plan = self._planned(statistics, self.request)
        if options.successive and plan.keep_ratio < 1:
            plan = self._planned(self._after(plan), self.request)
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

    def mend(self, plan: CompressionPlan) -> Mended | None:
        if self.rules is None:
            return None
        directory, options = self.output / DIRECTORY, self.options.calibration
        key = key_of(plan.digest, asdict(self.rules), asdict(options))
        if self.directory.done("mending", key):
            with one_writer(directory):  # which takes the lock of a killed process away
                return Mended(directory)
        domains, _, _ = self._domains
        found = mend_into(
            self.checkpoint, plan, domains, directory, self.rules, options, self.progress
        )
        if found is not None:
            self.directory.finish("mending", key, found.files)
        return found

    def write_checkpoint(self, source: ModelSource) -> None:
        target, key = self.output / "checkpoint", key_of(source.digest)
        if self.directory.done("checkpoint", key):
            return
        if self.directory.has_run("checkpoint", key):  # and has lost files since
            reopen(target, source.digest)
        elif is_other_checkpoint(target, source.digest):  # an unfinished run's, other settings
            shutil.rmtree(target)
        digests = write_checkpoint(source, target, self.progress)
        files = [file for file in target.rglob("*") if file.is_file()]
        known = {target / name: digest for name, digest in digests.items()}
        self.directory.finish("checkpoint", key, files, known)

    def export(
        self, plan: CompressionPlan, source: ModelSource, importance: Importance | None
    ) -> None:
        target, options = self._target(plan), self._export_options(plan)

        def write() -> list[Path]:
            writer = exporter(plan.record.format)
            ranges = self._ranges(source) if writer.needs_ranges(options) else None
            data = ExportData(importance, ranges)
            manifest = writer.write(source, options, target, data, self.progress)
            return [self.output / name for name in placed_files(writer, manifest)]

        matrix = None if importance is None else importance.digest
        planned = source.planned_run
        run = None if planned is None else planned.to_json()
        key = key_of(source.digest, asdict(options), matrix, run)
        if not self.directory.done("export", key):
            self.directory.discard("export")
            self.directory.finish("export", key, write())

    def validate(self, plan: CompressionPlan, source: ModelSource) -> ValidationReport:
        file = self.output / "validation.json"
        options = self.options
        exported = dict(self.directory.digests("export"))
        key = key_of(
            source.digest, exported, asdict(options.validation), asdict(options.calibration)
        )
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

    def _planned(self, statistics: Statistics | None, options: PlanOptions) -> CompressionPlan:
        return run_plan(
            self.checkpoint,
            options,
            statistics,
            self.options.calibration,
            self.progress,
            beside=None if statistics is None else self._calibration,
            extra_files=None if self.options.skip_checkpoint else self._checkpoint_files,
        )

    @property
    def _calibration(self) -> Path:
        return self.options.statistics or self.output / "calibration"

    def _checkpoint_files(self, plan: CompressionPlan) -> dict[str, int]:
        """Exact size of every weight file of the pruned checkpoint."""
        files = checkpoint_files(ModelSource(self.checkpoint, plan))
        return {f"checkpoint/{name}": size for name, size in files.items()}

    def _target(self, plan: CompressionPlan) -> Path:
        return self.output / exporter(plan.record.format).target

    def _export_options(self, plan: CompressionPlan) -> ExportOptions:
        record = plan.record
        return ExportOptions(
            record.quant,
            record.layout,
            record.imatrix,
            record.tensor_types,
            shard_bytes=record.shard_bytes,
            latent_cache=record.latent_cache,
            lengths=None if record.lengths is None else FixedLengths(**record.lengths),
            targets=record.targets,
        )

    def _ranges(self, source: ModelSource) -> Ranges:
        directory = self.options.statistics or self.output / "calibration"
        domains, _, _ = self._domains
        return kept_ranges(source, directory, measured_text(domains).digest) or ranges_into(
            source, domains, self.options.calibration, directory, self.progress
        )

    def _predicted_peak_rss(self, plan: CompressionPlan) -> int | None:
        """Of the run that validation measures, which is on this machine."""
        measured_here = self.profile.runtime_overhead_bytes is None
        return int(plan.memory["total_bytes"]) if measured_here else None

    def _padded(self, plan: CompressionPlan) -> Priced:
        request = replace(self.request, layout="padded", quant=plan.record.quant)
        positions = self.checkpoint.config.max_position_embeddings
        return Pricer(self.checkpoint, make_target(self.profile, request, positions))(plan.widths)

    def _memory_run(self, plan: CompressionPlan) -> MemoryRun:
        chosen = {name: plan.memory[name] for name in ("context", "ubatch", "kv_type")}
        threads = self.options.validation.threads or self.profile.threads
        return MemoryRun(**chosen, threads=threads)

    @cached_property
    def _domains(self) -> tuple[list[Domain], list[Domain], list[Domain]]:
        """Chunks for calibration, for validation, and for refining: none in two of them."""
        options = self.options
        progress = QUIET if self._calibrated else self.progress
        return compress_domains(self.checkpoint, options.calibration, options.validation, progress)
