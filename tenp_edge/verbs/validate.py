"""`validate`: a file against the model it was made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tenp_edge.calibration.text.domains import load_tokenizer
from tenp_edge.checkpoint.compression_plan import load_plan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.provenance import PrunedBy
from tenp_edge.errors import UserError
from tenp_edge.evaluation.attribution import PRUNING, QUANTISATION, REFERENCE
from tenp_edge.evaluation.validation import ValidationReport, validate
from tenp_edge.exporters.base import recognise
from tenp_edge.forward.text_batch import Domain
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.progress import QUIET, Progress, begin, expect
from tenp_edge.runtime.gguf.header import MAGIC, read_header
from tenp_edge.runtime.locating import locate
from tenp_edge.runtime.memory.footprint import PROCESS_STEP, MemoryRun
from tenp_edge.runtime.memory.peak import predict_peak
from tenp_edge.runtime.memory.planned_run import planned_in_gguf
from tenp_edge.verbs.options import (
    ComputeOptions,
    MeasureOptions,
    ValidationOptions,
)
from tenp_edge.verbs.timing import pace_of
from tenp_edge.verbs.token_chunks import fitted, most_tokens, validation_domains

_OPENING, _RUNTIME = "opening", "runtime"


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
    file = _gguf(candidate)
    planned = None if file is None else planned_in_gguf(read_header(file).fields)
    memory_run = (measure or MeasureOptions()).run(limit, threads, planned)
    options = fitted(checkpoint, options, progress)
    domains = validation_domains(checkpoint, options, compute.seed, progress)
    expect(progress, _expected(checkpoint, candidate, options, compute))
    begin(progress, _OPENING)
    return validate_on(
        domains,
        reference,
        candidate,
        options,
        compute,
        progress,
        pruned_by=pruned_by,
        memory_run=memory_run,
        predicted_peak_rss=None if file is None else as_planned(file, memory_run),
    )


def _gguf(candidate: Path) -> Path | None:
    """The GGUF file at ``candidate``; None where there is none that can be read."""
    recognised = recognise(candidate)
    if recognised is None or not recognised[0].is_file():
        return None
    with recognised[0].open("rb") as stream:
        return recognised[0] if stream.read(len(MAGIC)) == MAGIC else None


def as_planned(file: Path, run: MemoryRun) -> int | None:
    """Bytes that the plan beside ``file`` says of ``run``, where the runtime still says the same:
    the share of the process is measured, and differs by up to a step from one to the next. None
    where there is no such plan."""
    try:
        plan = load_plan(file.parent / "plan.json")
        is_its = plan.files.get(file.name) == file.stat().st_size
    except (UserError, OSError):
        return None
    asked = {name: getattr(run, name) for name in ("context", "ubatch", "kv_type")}
    if not is_its or asked != {name: plan.memory.get(name) for name in asked}:
        return None
    said, now = int(plan.memory["total_bytes"]), predict_peak(file, run).total_bytes
    return said if abs(said - now) <= PROCESS_STEP else now


def _expected(
    checkpoint: Checkpoint, candidate: Path, options: ValidationOptions, compute: ComputeOptions
) -> dict[str, float]:
    """Seconds by stage: the file is opened and its peak measured, the reference runs, then what
    lies between the two, then the file."""
    pace = pace_of(checkpoint, compute)
    forward = pace.forward(most_tokens(options))
    if recognise(candidate) is None and locate(candidate).kind == "checkpoint":
        return {REFERENCE: forward, PRUNING: forward}
    between = dict.fromkeys((PRUNING, QUANTISATION), forward) if options.split else {}
    return {_OPENING: pace.peak, REFERENCE: forward, **between, _RUNTIME: forward}


def validate_on(
    domains: Sequence[Domain],
    reference: Path,
    candidate: Path,
    options: ValidationOptions,
    compute: ComputeOptions,
    progress: Progress,
    *,
    memory_run: MemoryRun,
    predicted_peak_rss: int | None = None,
    pruned_by: PrunedBy | None = None,
    work: Path | None = None,
) -> ValidationReport:
    """`validate` as the options say, on ``domains`` (which they do not choose here)."""
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
        predicted_peak_rss=predicted_peak_rss,
        work=work,
        decode=load_tokenizer(reference).decode,
        progress=progress,
    )
