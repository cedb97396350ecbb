"""`calibrate` and `merge`: statistics in a directory, and what lies beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote

from tenp_edge.calibration.collect import calibrate
from tenp_edge.calibration.coverage import coverage
from tenp_edge.calibration.gradients import collect_gradients
from tenp_edge.calibration.held_out import (
    keep_slice,
    load_slice,
    slice_digest,
    slice_in,
    stored_slice,
)
from tenp_edge.calibration.merging import merge_statistics
from tenp_edge.calibration.storage import Statistics, load_statistics
from tenp_edge.calibration.text.domains import split_at
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.locking import one_writer
from tenp_edge.disk import write_json
from tenp_edge.errors import UserError
from tenp_edge.evaluation.refine import known_trials, measure_on
from tenp_edge.evaluation.rounding_job import RoundingJob
from tenp_edge.evaluation.type_sensitivity import TypeJob
from tenp_edge.forward.text_batch import Domain, token_count
from tenp_edge.models.inspection import inspect_model
from tenp_edge.planning.measured.probes import KEEPS, WAYS, probe
from tenp_edge.planning.measured.rounding_errors import FIRST_FORMAT
from tenp_edge.planning.measured.trials import Records
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan
from tenp_edge.progress import QUIET, Progress, begin, expect, reused
from tenp_edge.units import format_seconds
from tenp_edge.verbs.measure_types import (
    CHEAP_SECONDS,
    default_job,
    exactly,
    expected_rounding,
    knows_rounding,
    rounding_into,
    rounding_job,
    types_into,
)
from tenp_edge.verbs.options import (
    CalibrationOptions,
)
from tenp_edge.verbs.timing import operations_per_second, pace_of
from tenp_edge.verbs.token_chunks import calibration_domains, fitted, most_tokens

GRADIENT_FORWARDS = 3  # a forward and a backward pass of every layer
_PROBES_IN_CALIBRATIONS = 4  # how much longer than the calibration the probes may take


def run_calibrate(
    model: Path,
    work: Path,
    options: CalibrationOptions,
    progress: Progress = QUIET,
    gradients: bool = False,
    types: bool = False,
    format: str = "gguf",
) -> Statistics:
    """Collect statistics of ``model`` into ``work``; resumes, and returns finished work at once.

    ``gradients``: with a backward pass, for the scores that need one. ``types``: what every tensor
    type of ``format`` costs this model is measured too (`rounding`, `type_sensitivity`).
    """
    checkpoint, job = Checkpoint(model), default_job(format)
    if not types and format != FIRST_FORMAT:
        raise UserError(
            f"--format {format} says whose types --types measures, and it is not there",
            f"--types --format {format}, or leave --format out",
        )
    options = fitted(checkpoint, options, QUIET if finished_at(work) else progress)
    with one_writer(work):
        return _run_calibrate(
            checkpoint, work, options, progress, gradients, job if types else None
        )


def _run_calibrate(
    checkpoint: Checkpoint,
    work: Path,
    options: CalibrationOptions,
    progress: Progress,
    gradients: bool,
    job: TypeJob | None,
) -> Statistics:
    said = QUIET if finished_at(work) else progress  # nothing is said of text that is not read
    drawn = calibration_domains(checkpoint, options, said, hold_out=True)
    pairs = [split_at(domain, options.samples) for domain in drawn]
    domains, spare = [first for first, _ in pairs], [rest for _, rest in pairs]
    before = finished_at(work)
    expect(progress, _expected(checkpoint, options, spare, work, gradients, job))
    begin(progress, "calibration")
    statistics = calibrate_into(checkpoint, domains, work, options, progress, spare)
    if before and before == finished_at(work):
        if job is not None or gradients:
            reused(progress, "calibration")
        else:
            progress.note(f"nothing to do: {work} is complete")
    begin(progress, "measuring")
    probe_if_short(checkpoint, statistics, work, options, progress)
    if job is not None:
        _measure_types(job, checkpoint, statistics, work, options, progress)
    if not gradients:
        return statistics
    begin(progress, "gradients")
    return collect_gradients(
        checkpoint,
        domains,
        statistics,
        work,
        device=options.device,
        dtype=options.dtype,
        progress=progress,
    )


def _expected(
    checkpoint: Checkpoint,
    options: CalibrationOptions,
    spare: Sequence[Domain],
    work: Path,
    gradients: bool,
    job: TypeJob | None,
) -> dict[str, float]:
    """Seconds by stage."""
    pace, tokens = pace_of(checkpoint, options), most_tokens(options)
    together = None if job is None else rounding_job(job.writer, job.options)
    return {
        "calibration": 0.0 if finished_at(work) else pace.calibration(tokens),
        "measuring": expected_measuring(checkpoint, work, spare, together, options),
        "gradients": pace.forward(tokens, GRADIENT_FORWARDS) if gradients else 0.0,
    }


def _measure_types(
    job: TypeJob,
    checkpoint: Checkpoint,
    statistics: Statistics,
    work: Path,
    options: CalibrationOptions,
    progress: Progress,
) -> None:
    """What types cost, of every tensor where the statistics know what rounding does, else of the
    whole model in each."""
    together = rounding_job(job.writer, job.options)
    if together is not None and statistics.has_rounding:
        rounding_into(checkpoint, together, statistics, work, options, progress)
    else:
        types_into(checkpoint, job, statistics, work, options, progress)


def run_merge(parts: Sequence[Path], output: Path, force: bool = False) -> Statistics:
    """The sum of the statistics in ``parts``, in ``output``. Raises UserError where one text would
    be counted twice, and where ``output`` holds statistics already, unless ``force``."""
    if output.resolve() in [part.resolve() for part in parts]:
        raise UserError(f"{output} is one of those that are added up", "another -o")
    if (output / "statistics.json").is_file() and not force:
        raise UserError(
            f"{output} holds statistics already", "another -o, or --force to overwrite it"
        )
    inside = [_itself(part) for part in parts]
    if inside != list(parts):
        named = " ".join(quote(str(path)) for path in (*inside, "-o", output))
        raise UserError(
            "the directory of a run holds no statistics itself", f"tenp-edge merge {named}"
        )
    statistics = [load_statistics(part) for part in parts]
    with one_writer(output):
        return merge_statistics(statistics, output)


def _itself(directory: Path) -> Path:
    """Where the statistics are of what ``directory`` may be: what compress wrote."""
    inside = directory / "calibration"
    return inside if (inside / "statistics.json").is_file() else directory


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
    write_json(work / "coverage.json", coverage(statistics).to_json())
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
    seconds, affordable = _probing_seconds(checkpoint, domains, compute)
    if seconds > affordable:
        progress.note(
            "how width is best shared out is not measured, which would take about "
            f"{format_seconds(seconds)}; plan --refine measures it at one size"
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
    """About how long the probes take, and how long they may."""
    operations = 2 * inspect_model(checkpoint.path).active_parameters
    per_token = operations / operations_per_second(*exactly(checkpoint, compute))
    tokens = token_count(domains)
    calibrating = most_tokens(compute) * per_token
    affordable = max(CHEAP_SECONDS, _PROBES_IN_CALIBRATIONS * calibrating)
    return len(KEEPS) * (1 + len(WAYS)) * tokens * per_token, affordable


def expected_measuring(
    checkpoint: Checkpoint,
    directory: Path,
    held_out: Sequence[Domain],
    job: RoundingJob | None,
    compute: CalibrationOptions,
    probed: bool = True,
) -> float:
    """Seconds that `probe_if_short` (with ``probed``) and measuring ``job`` will take, of what
    ``directory`` does not know yet: on the text that a finished calibration left there, else on
    ``held_out``."""
    text = slice_in(directory) if finished_at(directory) else held_out
    seconds = 0.0
    if text and probed and not known_trials(directory):
        probing, affordable = _probing_seconds(checkpoint, text, compute)
        seconds += probing if probing <= affordable else 0.0
    if text and job is not None and not knows_rounding(checkpoint, job, directory):
        seconds += expected_rounding(checkpoint, job, text, compute)
    return seconds
