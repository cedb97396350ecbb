"""``compress``: the verbs in a row, in a directory that knows which of them are done."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tenp_edge.calibration.activation_ranges import Ranges
from tenp_edge.calibration.collect import calibrate
from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.range_measuring import measured_text
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import CompressionPlan, load_plan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.locking import one_writer
from tenp_edge.checkpoint.model_origin import CARD
from tenp_edge.checkpoint.overlay import DIRECTORY, Mended
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import PrunedFiles, is_other_checkpoint, reopen, write_files
from tenp_edge.disk import write_json
from tenp_edge.evaluation.type_sensitivity import TypeJob
from tenp_edge.evaluation.validation import ValidationReport, load_report
from tenp_edge.exporters.base import exporter, placed_files
from tenp_edge.forward.text_batch import Domain
from tenp_edge.pages.environment import environment_of
from tenp_edge.pages.report import write_report
from tenp_edge.planning.budget.tensor_types import measurable
from tenp_edge.planning.options.methods import method_named
from tenp_edge.planning.scores.pack import PackedScores
from tenp_edge.progress import QUIET, Progress, begin, expect, reused
from tenp_edge.sharing.describing import CARD_VERSION, describe_into
from tenp_edge.sharing.model_card import Described
from tenp_edge.verbs.calibrate import calibrate_into, finished_at, probe_if_short
from tenp_edge.verbs.compress_request import CALIBRATION, CompressRequest
from tenp_edge.verbs.export import export_into, kept_ranges, ranges_into
from tenp_edge.verbs.known_scores import known_statistics
from tenp_edge.verbs.measure_types import (
    costs_of,
    rounding_if_known,
    rounding_of,
    types_if_cheap,
)
from tenp_edge.verbs.options import CompressOptions
from tenp_edge.verbs.recipe_files import FILE as RECIPE
from tenp_edge.verbs.recipe_files import write_recipe
from tenp_edge.verbs.repair import mend_into
from tenp_edge.verbs.run_directory import RunDirectory, key_of
from tenp_edge.verbs.timing import WORTH_SAYING_SECONDS
from tenp_edge.verbs.token_chunks import both_fitted, compress_domains
from tenp_edge.verbs.validate import validate_on


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
        result = {"output": str(self.output), "plan": self.plan.to_json(), "validation": report}
        return result if self.mended is None else {**result, "mended": dict(self.mended.info)}


def run_compress(
    model: Path, output: Path, options: CompressOptions, progress: Progress = QUIET
) -> CompressResult:
    """Calibrate, plan, repair, cut, export and validate ``model`` into ``output``; resumes.

    Everything that can be refused is refused before the first long step: the budget is planned by
    bytes alone, the disk is checked, and the exporter is asked whether it can write this model.
    """
    checkpoint = Checkpoint(model)
    if checkpoint.left_out:
        progress.note(f"left out: {checkpoint.left_out_text}")
    if checkpoint.is_file and not options.skip_checkpoint:
        progress.note("no pruned checkpoint is written: the model is a file, not a checkpoint")
        options = replace(options, skip_checkpoint=True)
    said = QUIET if finished_at(output / CALIBRATION) else progress
    options = both_fitted(checkpoint, options, said)
    request = CompressRequest(checkpoint, output, options, progress)
    request.require_disk()
    with one_writer(output):
        run = _Run(request, progress)
        statistics = run.calibrate()
        run.measure_types(statistics)
        plan = run.plan(statistics)
        request.require_judge(plan)
        mended = run.repair(plan)
        source = ModelSource(checkpoint, plan, mended=mended)
        run.write_checkpoint(source)
        run.export(plan, source, statistics)
        report = run.validate(plan, source)
        run.describe(Described(source, plan, None if report is None else report.to_json()))
        run.end()
    return CompressResult(output, plan, report, mended)


class _Run:
    """The stages of one run, each the verb of its name on what the run has: what a stage depends on
    is its key, what it wrote is its record in the directory, and what is done is not done again."""

    def __init__(self, request: CompressRequest, progress: Progress) -> None:
        self._request, self._progress = request, progress
        self._checkpoint, self._output = request.checkpoint, request.output
        self._options = request.options
        command = key_of(asdict(replace(self._options, force=False, output=None)))
        self._directory = RunDirectory(
            self._output, self._checkpoint.fingerprint, command, self._options.force, progress
        )
        given = self._options.statistics  # read before anything is written: it may be refused
        self._given = None if given is None else known_statistics(given, self._checkpoint)
        kept = given is not None or not self._directory.clears
        self._calibrated = finished_at(request.statistics_directory) if kept else 0
        self._draw_text()
        self._directory.begin()
        write_recipe(self._output / RECIPE, self._options, output=self._output)
        self._say_how_long()

    # -- the stages ------------------------------------------------------------------------------

    def calibrate(self) -> Statistics:
        options, checkpoint = self._options, self._checkpoint
        if self._given is not None:
            reused(self._progress, "calibration")
            return self._given
        domains, _, spare = self._domains
        work, compute = self._request.statistics_directory, options.calibration
        begin(self._progress, "calibration")
        statistics = calibrate_into(checkpoint, domains, work, compute, self._progress, spare)
        if self._calibrated == finished_at(work) and not self._directory.complete:
            reused(self._progress, "calibration")
        if method_named(options.plan.method).probed:
            probe_if_short(checkpoint, statistics, work, compute, self._progress)
        return statistics

    def measure_types(self, statistics: Statistics) -> None:
        """What the types cost, where one is to be chosen."""
        if isinstance(statistics, PackedScores):
            return  # what was measured is in its file
        spec, request = self._request.spec(), self._request
        export_options = replace(spec.target.options, imatrix=request.plan_options.imatrix)
        job = TypeJob(spec.target.exporter, export_options, measurable(spec))
        where, compute = request.statistics_directory, self._options.calibration
        given = statistics, where, compute, self._progress
        together = request.rounding_job()
        begin(self._progress, "measuring")
        if together is not None and rounding_if_known(self._checkpoint, together, *given):
            return
        types_if_cheap(self._checkpoint, job, *given)

    def plan(self, statistics: Statistics) -> CompressionPlan:
        file, options, request = self._output / "plan.json", self._options, self._request
        # By what it is made from: the process that its memory counts differs by pages each time.
        inputs = asdict(request.plan_options), asdict(request.profile), statistics.info
        costs = costs_of(self._checkpoint, request.statistics_directory)
        format = request.spec().target.exporter.format
        rounding = rounding_of(self._checkpoint, request.statistics_directory, format)
        types = tuple(known.to_json() for known in (costs, rounding) if known is not None)
        written = options.skip_checkpoint or options.checkpoint_dtype
        key = key_of(*inputs, written, options.plan.refine, options.successive, *types)
        if self._done("plan", key):
            return load_plan(file)
        plan = request.planned(statistics)
        if options.successive and plan.keep_ratio < 1:
            plan = request.planned(self._calibrate_after(plan))
        plan.save(file)
        self._directory.finish("plan", key, [file, file.with_suffix(".safetensors")])
        return plan

    def repair(self, plan: CompressionPlan) -> Mended | None:
        rules = self._request.rules
        if rules is None:
            return None
        directory, compute = self._output / DIRECTORY, self._options.calibration
        key = key_of(plan.digest, asdict(rules), asdict(compute))
        if self._done("mending", key):
            with one_writer(directory):  # which takes the lock of a killed process away
                return Mended(directory)
        domains, _, _ = self._domains
        mended = mend_into(
            self._checkpoint, plan, domains, directory, rules, compute, self._progress
        )
        if mended is not None:
            self._directory.finish("mending", key, mended.files)
        return mended

    def write_checkpoint(self, source: ModelSource) -> None:
        if self._options.skip_checkpoint:
            return
        pruned = PrunedFiles(source, self._options.checkpoint_dtype)
        target, key = self._output / "checkpoint", key_of(*pruned.identity.values())
        if self._done("checkpoint", key):
            return
        if self._directory.has_run("checkpoint", key):  # and has lost files since
            reopen(target, pruned)
        elif is_other_checkpoint(target, pruned):  # an unfinished run's, other settings
            shutil.rmtree(target)
        if pruned.as_stored.any:
            self._progress.note(f"checkpoint: {pruned.as_stored.text}")
        digests = write_files(pruned, target, self._progress)
        # The card gets its numbers later, and may be edited.
        card = target / CARD
        files = [file for file in target.rglob("*") if file.is_file() and file != card]
        known = {target / name: digest for name, digest in digests.items()}
        self._directory.finish("checkpoint", key, files, known)

    def export(self, plan: CompressionPlan, source: ModelSource, statistics: Statistics) -> None:
        importance = Importance(statistics, plan) if plan.record.imatrix else None
        options, format = self._request.export_options(plan), plan.record.format
        matrix = None if importance is None else importance.digest
        planned = source.planned_run
        memory_run = None if planned is None else planned.to_json()
        key = key_of(source.digest, asdict(options), matrix, memory_run)
        if self._done("export", key):
            return
        self._directory.discard("export")
        manifest = export_into(
            self._request.target(plan),
            source,
            format,
            options,
            importance,
            lambda: self._ranges(source),
            self._progress,
        )
        names = placed_files(exporter(format), manifest)
        self._directory.finish("export", key, [self._output / name for name in names])

    def validate(self, plan: CompressionPlan, source: ModelSource) -> ValidationReport | None:
        file, options, request = self._output / "validation.json", self._options, self._request
        if options.no_validate:
            return None
        exported = dict(self._directory.digests("export"))
        key = key_of(
            source.digest, exported, asdict(options.validation), asdict(options.calibration)
        )
        if self._done("validation", key):
            return load_report(file)
        _, held_out, _ = self._domains
        report = validate_on(
            held_out,
            self._checkpoint.path,
            request.target(plan),
            options.validation,
            options.calibration,
            self._progress,
            memory_run=request.memory_run(plan),
            predicted_peak_rss=request.predicted_peak_rss(plan),
            work=self._output,
        )
        write_json(file, report.to_json())
        self._directory.finish("validation", key, [file])
        return report

    def describe(self, described: Described) -> None:
        """Cards and a Modelfile, once for this very run: whoever edits them keeps them."""
        digests = dict(self._directory.digests("export"))
        key = key_of(described.source.digest, digests, described.report, CARD_VERSION)
        if self._directory.done("card", key) and (self._output / CARD).is_file():
            return
        describe_into(described, self._output, self._request.target(described.plan))
        self._directory.finish("card", key, [])

    def _done(self, stage: str, key: str) -> bool:
        """Whether ``stage`` needs not run again, which is said; if it must, it begins."""
        if not self._directory.done(stage, key):
            begin(self._progress, stage)
            return False
        if not self._directory.complete:
            reused(self._progress, stage)
        return True

    def end(self) -> None:
        calibrated = finished_at(self._request.statistics_directory) != self._calibrated
        worked = self._directory.worked or calibrated
        if self._directory.complete and not worked:
            self._progress.note(f"nothing to do: {self._output} is complete")
        made_of = self._checkpoint
        environment = environment_of(made_of.path, made_of.weight_bytes) if worked else None
        write_report(self._output, environment)
        self._directory.end()

    # -- said and read before the first stage ------------------------------------------------------

    def _draw_text(self) -> None:
        """Read the text before anything is promised: what is wrong with it is said first."""
        if self._options.statistics is None or not self._options.no_validate:
            self._domains  # noqa: B018

    def _say_how_long(self) -> None:
        """When that is more than a moment."""
        if self._directory.complete:
            return
        _, _, spare = self._domains if self._options.statistics is None else ([], [], [])
        calibrated = bool(self._calibrated or self._options.statistics)
        expected = self._request.expected_time(calibrated, spare)
        expect(self._progress, expected.stages)
        if expected.total >= WORTH_SAYING_SECONDS:
            self._progress.note(str(expected))

    # -- what several stages take ------------------------------------------------------------------

    @cached_property
    def _domains(self) -> tuple[list[Domain], list[Domain], list[Domain]]:
        """Chunks for calibration, for validation, and for refining: none in two of them."""
        options = self._options
        progress = QUIET if self._calibrated else self._progress
        return compress_domains(self._checkpoint, options.calibration, options.validation, progress)

    def _ranges(self, source: ModelSource) -> Ranges:
        directory = self._request.statistics_directory
        domains, _, _ = self._domains
        return kept_ranges(source, directory, measured_text(domains).digest) or ranges_into(
            source, domains, self._options.calibration, directory, self._progress
        )

    def _calibrate_after(self, plan: CompressionPlan) -> Statistics:
        """The calibration again, every layer on what ``plan`` leaves of the layers before it."""
        domains, _, _ = self._domains
        compute = self._options.calibration
        return calibrate(
            self._checkpoint,
            domains,
            self._output / "calibration-pruned",
            device=compute.device,
            dtype=compute.dtype,
            seed=compute.seed,
            progress=self._progress,
            plan=plan,
        )
