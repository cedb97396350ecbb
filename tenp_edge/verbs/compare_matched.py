"""The verb `compare --matched`: calibrate, measure every way at every budget, write the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from tenp_edge.calibration.held_out import SLICE_TOKENS
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.locking import one_writer
from tenp_edge.checkpoint.model_origin import display_name
from tenp_edge.disk import write_text
from tenp_edge.errors import UserError
from tenp_edge.evaluation.comparison.measures import Measure
from tenp_edge.evaluation.matched.filled import BUDGETS, Budget, budgets_of
from tenp_edge.evaluation.matched.measuring import (
    WHOLE,
    Matched,
    compare_matched,
    measuring_stage,
)
from tenp_edge.evaluation.matched.running import run_file
from tenp_edge.evaluation.matched.single_type import whole_types
from tenp_edge.evaluation.matched.table import markdown
from tenp_edge.evaluation.matched.ways import WAYS
from tenp_edge.evaluation.refine import known_trials
from tenp_edge.exporters.base import Exporter, exporter
from tenp_edge.forward.device import choose_device, choose_dtype
from tenp_edge.pages.compare import write_matched
from tenp_edge.planning.measured.rounding_errors import RoundingErrors
from tenp_edge.planning.options.settings import check
from tenp_edge.progress import QUIET, Progress, begin, expect
from tenp_edge.runtime.session import thread_count
from tenp_edge.verbs.compare import (
    about,
    calibrations,
    expected_calibrations,
    measuring_pass,
    mender,
    text_measures,
)
from tenp_edge.verbs.compare_options import CompareOptions
from tenp_edge.verbs.measure_types import default_job, rounding_into, rounding_job, rounding_of
from tenp_edge.verbs.timing import pace_of
from tenp_edge.verbs.token_chunks import both_fitted

SEEDS = 1
_ROUNDING = "types"
# Of the text held out; and the files that are tried for a budget. As on the bundled model.
_ROUNDING_FORWARDS, _FILES_OF_A_BUDGET = 12, 14
FILE, PAGE = "matched.json", "matched.md"


def run_compare_matched(
    model: Path, output: Path, options: CompareOptions, progress: Progress = QUIET
) -> dict[str, Any]:
    """Every way to spend the bytes of ``options.budgets``, measured on ``model`` into ``output``;
    JSON values, as in matched.json.

    Continues after a kill, one budget at a time. Raises UserError for what no comparison can be
    made of, before the first long step.
    """
    _check(options)
    checkpoint, writer = Checkpoint(model), exporter("gguf")
    budgets = budgets_of(checkpoint, writer, options.budgets or BUDGETS)
    where = choose_device(options.calibration.device)
    kind = options.calibration.dtype
    dtype = choose_dtype("float32" if kind == "auto" else kind, where, checkpoint.dtype)
    options = both_fitted(checkpoint, options, progress)
    with one_writer(output):
        measures = text_measures(checkpoint, options, progress)
        expect(progress, _expected(checkpoint, writer, budgets, output, options, measures))
        statistics = calibrations(checkpoint, output, options, progress, SEEDS)
        matched = Matched(
            checkpoint=checkpoint,
            writer=writer,
            budgets=budgets,
            ways=WAYS,
            types=whole_types(writer),
            statistics=statistics,
            measures=measures,
            mend={s: mender(checkpoint, output, options, s, progress) for s in statistics},
            trials={s: known_trials(output / f"calibration-{s}") for s in statistics},
            rounding=_rounding(checkpoint, output, options, statistics, progress),
            about=about(options, measures),
        )
        runs = partial(run_file, checkpoint, writer, work=output, threads=thread_count(None))
        result = compare_matched(
            matched,
            output / FILE,
            device=where,
            dtype=dtype,
            progress=progress,
            run_file=runs if options.files else None,
        )
        write_text(output / PAGE, markdown(result))
        write_matched(output, display_name(checkpoint.path), result)
    return result


def _expected(
    checkpoint: Checkpoint,
    writer: Exporter,
    budgets: Sequence[Budget],
    output: Path,
    options: CompareOptions,
    measures: Mapping[str, Sequence[Measure]],
) -> dict[str, float]:
    """Seconds by stage; files are measured in passes, for every seed one of the whole types and
    one a budget."""
    pace, seeds = pace_of(checkpoint, options.calibration), options.calibration_seeds(SEEDS)
    job = rounding_job(writer, default_job().options)
    per_seed = pace.forward(SLICE_TOKENS, _ROUNDING_FORWARDS)
    known = [rounding_of(checkpoint, output / f"calibration-{seed}") for seed in seeds]
    missing = 0 if job is None else known.count(None)
    numbers = sum(prod(tensor.shape) for tensor in checkpoint.tensors.values())
    encoding = 4 * numbers / writer.encoding_speed(default_job().options)

    def measuring(files: int) -> float:
        return measuring_pass(pace, measures, files) + files * encoding

    passes = {WHOLE: measuring(len(whole_types(writer)))}
    passes |= {budget.name: measuring(_FILES_OF_A_BUDGET) for budget in budgets}
    return {
        **expected_calibrations(pace, output, options, SEEDS),
        _ROUNDING: missing * per_seed,
        **{measuring_stage(what, seed): passes[what] for seed in seeds for what in passes},
    }


def _rounding(
    checkpoint: Checkpoint,
    output: Path,
    options: CompareOptions,
    statistics: Mapping[int, Statistics],
    progress: Progress,
) -> dict[int, RoundingErrors]:
    """What rounding does to the model, by calibration seed; kept beside the statistics."""
    plain = default_job()
    job = rounding_job(plain.writer, plain.options)
    if job is None:
        return {}
    found = {}
    begin(progress, _ROUNDING)
    for seed, known in statistics.items():
        if known.has_rounding:
            directory = output / f"calibration-{seed}"
            found[seed] = rounding_into(
                checkpoint, job, known, directory, options.calibration, progress
            )
    return found


def _check(options: CompareOptions) -> None:
    check(options)
    plain = CompareOptions()
    for flag, name in (
        ("--method", "methods"),
        ("--keep", "ratios"),
        ("--width-multiple", "width_multiple"),
        ("--lm-eval", "lm_eval"),
    ):
        if getattr(options, name) != getattr(plain, name):
            raise UserError(f"{flag} is not for --matched", f"leave {flag} or --matched out")
    if options.seeds is not None and options.seeds < 1:
        raise UserError(f"--seeds {options.seeds} is not above zero", "--seeds 1")
