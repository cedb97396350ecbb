"""`plan`: from files to a CompressionPlan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.locking import one_writer
from tenp_edge.errors import UserError
from tenp_edge.evaluation.refine import MakePlan, known_trials, refine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import ExtraFiles, make_plan
from tenp_edge.progress import QUIET, Progress
from tenp_edge.verbs.known_scores import known_statistics, measured_beside
from tenp_edge.verbs.measure_types import costs_of, exactly, rounding_of
from tenp_edge.verbs.options import (
    ComputeOptions,
)
from tenp_edge.verbs.sizes import choose_profile, require_size


def run_plan(
    model: Path | Checkpoint,
    options: PlanOptions,
    statistics: Path | Statistics | None = None,
    compute: ComputeOptions | None = None,
    progress: Progress = QUIET,
    *,
    beside: Path | None = None,
    extra_files: ExtraFiles | None = None,
    least: bool = False,
) -> CompressionPlan:
    """Decide the widths (and, with statistics, the neurons). Runs the model only to refine.

    ``beside``: where the text held out from the calibration lies, with what was measured on it; the
    directory of ``statistics`` unless told otherwise. ``extra_files`` and ``least`` as in
    `planner.make_plan`.
    """
    checkpoint = model if isinstance(model, Checkpoint) else Checkpoint(model)
    require_size(options)
    profile, compute = choose_profile(options), compute or ComputeOptions()
    options = replace(options, seed=compute.seed, frontier=True)
    if isinstance(statistics, Path):
        beside = beside or measured_beside(statistics)
        statistics = known_statistics(statistics, checkpoint)
    if options.refine and (statistics is None or beside is None):
        raise UserError(
            "--refine measures plans, which need neurons",
            "--calibration WORK (tenp-edge calibrate MODEL -o WORK)",
        )

    format = options.format or profile.format

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
            rounding=rounding_of(checkpoint, beside, format) if beside else None,
            least=least,
        )

    if options.refine and beside is not None:
        return refine_into(checkpoint, options, make, beside, compute, progress)
    return make(options)


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
