"""What one run of ``compress`` is asked for, and all that is known before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import checkpoint_files
from tenp_edge.disk import require_free
from tenp_edge.errors import UserError
from tenp_edge.evaluation.rounding_job import RoundingJob
from tenp_edge.exporters.base import ExportOptions, FixedLengths, exporter
from tenp_edge.forward.device import choose_device, choose_dtype
from tenp_edge.forward.text_batch import Domain
from tenp_edge.models.inspection import inspect_model
from tenp_edge.planning.joint.plan import may_join
from tenp_edge.planning.memory.pricing import Priced, Pricer
from tenp_edge.planning.options.methods import method_named
from tenp_edge.planning.options.settings import check
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.options.target import PlanSpec, make_target, resolve
from tenp_edge.progress import Progress
from tenp_edge.recovery.recover import mended_bytes
from tenp_edge.runtime.memory.footprint import MemoryRun
from tenp_edge.verbs.calibrate import expected_measuring, finished_at
from tenp_edge.verbs.known_scores import known_statistics, measured_beside
from tenp_edge.verbs.measure_types import rounding_job
from tenp_edge.verbs.options import CompressOptions
from tenp_edge.verbs.plan import run_plan
from tenp_edge.verbs.repair import mend_rules
from tenp_edge.verbs.sizes import choose_profile, require_size
from tenp_edge.verbs.timing import Estimate, estimate
from tenp_edge.verbs.token_chunks import most_tokens

CALIBRATION = "calibration"  # in the output directory


class CompressRequest:
    """``options`` for ``checkpoint`` and the directory ``output``. Raises UserError for what can be
    refused by the options alone."""

    def __init__(
        self, checkpoint: Checkpoint, output: Path, options: CompressOptions, progress: Progress
    ) -> None:
        self.checkpoint, self.output, self.options = checkpoint, output, options
        self._progress = progress
        check(options)
        self.profile = choose_profile(options.plan)
        require_size(options.plan)
        self.plan_options = replace(options.plan, seed=options.calibration.seed, frontier=True)
        self.rules = mend_rules(options)

    # -- places --------------------------------------------------------------------------------

    @property
    def statistics_directory(self) -> Path:
        """Where the statistics are, and what is measured beside them."""
        given = self.options.statistics
        return self.output / CALIBRATION if given is None else measured_beside(given)

    def target(self, plan: CompressionPlan) -> Path:
        """The exported file or directory."""
        return self.output / exporter(plan.record.format).target

    # -- the plan, and what it decides -----------------------------------------------------------

    @cached_property
    def draft(self) -> CompressionPlan:
        """A plan by bytes alone. Free widths need scores; a trapezoid of their size stands in.
        Where that does not fit, statistics that there are already may know a smaller one, and so
        may those that are to come."""
        method = method_named(self.plan_options.method)
        options = replace(self.plan_options, refine=False)
        by_bytes = replace(options, method=method.draft or method.name)
        try:
            return self.planned(None, by_bytes)
        except UserError:
            known = self._known_statistics()
            if known is not None:
                return self.planned(known, options)
            if not self._will_join():
                raise
            return self.planned(None, by_bytes, least=True)

    def _will_join(self) -> bool:
        """Whether widths and types will be chosen together, by what the run measures itself."""
        return self.rounding_job() is not None and may_join(self.spec())

    def planned(
        self,
        statistics: Statistics | None,
        options: PlanOptions | None = None,
        least: bool = False,
    ) -> CompressionPlan:
        """What ``plan`` decides with these statistics, the checkpoint's files counted too;
        ``least``: the smallest that statistics may lead to."""
        return run_plan(
            self.checkpoint,
            options or self.plan_options,
            statistics,
            self.options.calibration,
            self._progress,
            beside=None if statistics is None else self.statistics_directory,
            extra_files=None if self.options.skip_checkpoint else self._checkpoint_files,
            least=least,
        )

    def spec(self) -> PlanSpec:
        """The plan's options with every default filled in for this model and device."""
        positions = self.checkpoint.config.max_position_embeddings
        return resolve(self.plan_options, self.profile, positions)

    def export_options(self, plan: CompressionPlan) -> ExportOptions:
        """How ``plan`` is to be written."""
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
            types=plan.file_types,
        )

    def memory_run(self, plan: CompressionPlan) -> MemoryRun:
        """The run that ``plan`` counts the memory of, on this machine's threads."""
        chosen = {name: plan.memory[name] for name in ("context", "ubatch", "kv_type")}
        threads = self.options.validation.threads or self.profile.threads
        return MemoryRun(**chosen, threads=threads)

    def predicted_peak_rss(self, plan: CompressionPlan) -> int | None:
        """Bytes of that run; None where the plan is for another machine than this one."""
        measured_here = self.profile.runtime_overhead_bytes is None
        return int(plan.memory["total_bytes"]) if measured_here else None

    # -- what it will take -----------------------------------------------------------------------

    def missing(self) -> dict[str, int]:
        """Bytes of every planned file that is not there yet, by name."""
        return {k: size for k, size in self.draft.files.items() if not self._is_there(k, size)}

    def require_disk(self) -> None:
        """UserError unless everything not yet written fits, a twin for the validation included."""
        missing = self.missing()
        with_twin = self.options.validation.twin and not self.options.no_validate
        twin = self._padded().manifest.file_bytes if with_twin else 0
        what = f"this run ({', '.join((*missing, 'the padded twin') if twin else missing)})"
        mending = 0 if self.rules is None else mended_bytes(self.checkpoint, self.draft, self.rules)
        require_free(self.output, sum(missing.values()) + twin + mending, what)

    def require_judge(self, plan: CompressionPlan) -> None:
        """UserError where the validation that was asked for cannot judge ``plan``."""
        if self.options.validation.twin and not self.options.no_validate and plan.means:
            many = len(plan.means) > 1
            experts = (
                f"{len(plan.means)} experts of the plan give"
                if many
                else "an expert of the plan gives"
            )
            raise UserError(
                f"{experts} a constant, which llama.cpp cannot hold",
                "leave --twin out",
            )

    def rounding_job(self) -> RoundingJob | None:
        """What rounding does, where types are to be chosen together with the widths."""
        spec = self.spec()
        export_options = replace(spec.target.options, imatrix=self.plan_options.imatrix)
        job = rounding_job(spec.target.exporter, export_options)
        return job if not spec.sized and spec.method.probed else None

    def expected_time(self, calibrated: bool, held_out: Sequence[Domain]) -> Estimate:
        """How long what is missing will take: of the calibration nothing if it is done, and
        nothing of what was measured on the ``held_out`` text after it."""
        options, checkpoint, draft = self.options, self.checkpoint, self.draft
        summary, missing = inspect_model(checkpoint.path), self.missing()
        device = choose_device(options.calibration.device)
        writer = exporter(draft.record.format)
        exported = all(name.startswith("checkpoint/") for name in missing)
        kept = round(draft.record.model_retention * summary.parameters)
        return estimate(
            active_parameters=summary.active_parameters,
            model_bytes=sum(tensor.nbytes for tensor in checkpoint.tensors.values()),
            written_bytes=sum(missing.values()),
            calibration_tokens=0 if calibrated else most_tokens(options.calibration),
            validation_tokens=0 if options.no_validate else most_tokens(options.validation),
            validation_forwards=4 if options.validation.split else 2,
            quantised_parameters=0 if exported else kept,
            encoding_speed=writer.encoding_speed(self.export_options(draft)),
            device=device,
            dtype=choose_dtype(options.calibration.dtype, device, checkpoint.dtype),
            mending_forwards=0 if self.rules is None else self.rules.forwards,
            mended_tokens=most_tokens(options.calibration),
            measuring=self._measuring(held_out),
        )

    def _measuring(self, held_out: Sequence[Domain]) -> float:
        given = self.checkpoint, self.statistics_directory, held_out, self.rounding_job()
        probed = method_named(self.plan_options.method).probed and self.options.statistics is None
        return expected_measuring(*given, self.options.calibration, probed)

    # -- helpers ---------------------------------------------------------------------------------

    def _known_statistics(self) -> Statistics | None:
        given = self.options.statistics
        if given is None and not finished_at(self.statistics_directory):
            return None
        return known_statistics(given or self.statistics_directory, self.checkpoint)

    def _is_there(self, name: str, size: int) -> bool:
        file = self.output / name
        return file.is_file() and file.stat().st_size == size

    def _checkpoint_files(self, plan: CompressionPlan) -> dict[str, int]:
        """Exact size of every weight file of the pruned checkpoint."""
        source = ModelSource(self.checkpoint, plan)
        files = checkpoint_files(source, self.options.checkpoint_dtype)
        return {f"checkpoint/{name}": size for name, size in files.items()}

    def _padded(self) -> Priced:
        """The draft as a padded GGUF: the twin, which is float32 where experts differ in type."""
        quant = self.draft.record.quant if self.draft.types is None else "F32"
        request = replace(self.plan_options, layout="padded", quant=quant)
        positions = self.checkpoint.config.max_position_embeddings
        target = make_target(self.profile, request, positions)
        pricer = Pricer(self.checkpoint, target, keeps_places=self.draft.keeps_places)
        return pricer(self.draft.widths)
