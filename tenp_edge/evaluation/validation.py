"""A compressed model against the original: KL, perplexity, agreement, and measured peak RSS.

All models run over the same tokens (`attribution`). The reference runs layer by layer (it may be
bigger than RAM). A pruned checkpoint runs the same way, an exported file as the judge of its format
runs it (`Exporter.judge`): a GGUF in its own runtime, or through its padded twin in unmodified
llama.cpp, an ONNX directory in onnxruntime. What a file loses is split into what pruning,
quantisation and its runtime do.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.locking import one_writer_of
from tenp_edge.checkpoint.provenance import PrunedBy, find_pruned
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.disk import read_json
from tenp_edge.errors import UserError
from tenp_edge.evaluation.attribution import (
    BOTH,
    CANDIDATE,
    DECODED,
    PRUNED,
    PRUNING,
    QUANTISATION,
    REFERENCE,
    TRANSFORMERS,
    Loss,
    Run,
    Stage,
    first_scored,
    measure_losses,
    scored_text,
)
from tenp_edge.evaluation.disagreements import Decode, Disagreement, Disagreements, Guess
from tenp_edge.evaluation.divergence import DomainScores
from tenp_edge.evaluation.routing import RoutingOverlap, overlap
from tenp_edge.exporters.base import (
    Exporter,
    Findings,
    GraphCheck,
    JudgeRequest,
    exporter,
    recognise,
)
from tenp_edge.exporters.session_judging import require_family, require_sizes
from tenp_edge.forward.device import choose_device, choose_dtype
from tenp_edge.forward.text_batch import Domain
from tenp_edge.progress import QUIET, Progress
from tenp_edge.runtime.locating import locate
from tenp_edge.runtime.memory.footprint import MemoryRun

_SIZES = ("num_hidden_layers", "hidden_size", "vocab_size")


@dataclass(frozen=True)
class ValidationReport:
    """What `validate` measured. ``judged_through`` names what really ran.

    ``domains`` and ``overall`` are those of the candidate as it runs, the last of ``losses``;
    ``graph_checks``: the ways to run an ONNX graph, each against torch.
    ``losses_note`` says why the loss is not split, or not into all steps.
    ``predicted_peak_rss`` and ``measured_peak_rss``, in bytes, are of the same run: the file named
    by ``measured_as`` in llama.cpp; None where no prediction was given or nothing runs there.
    ``tokenizer_agrees``: whether the file's own tokenizer gives the reference's ids (GGUF only).
    ``routing``: of the file's weights in torch, None where only the file itself ran or experts are
    others; ``examples``: where the file disagrees most, if the text could be shown.
    """

    reference: str
    candidate: str
    judged_through: str
    device: str
    dtype: str
    domains: tuple[DomainScores, ...]
    overall: DomainScores
    losses: tuple[Loss, ...] = ()
    losses_note: str | None = None
    graph_checks: tuple[GraphCheck, ...] = ()
    tokenizer_agrees: bool | None = None
    predicted_peak_rss: int | None = None
    measured_peak_rss: int | None = None
    measured_as: str | None = None
    routing: RoutingOverlap | None = None
    examples: tuple[Disagreement, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"format": "tenp-edge validation", "version": 1, **asdict(self)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> ValidationReport:
        """The report that ``to_json`` gave. Raises UserError when it is not one."""
        try:
            # Reports of earlier versions lack the last two.
            raw = {"routing": None, "examples": (), **raw}
            known = {field.name: raw[field.name] for field in fields(cls)}
            known["domains"] = tuple(DomainScores(**row) for row in known["domains"])
            known["overall"] = DomainScores(**known["overall"])
            known["graph_checks"] = tuple(GraphCheck(**row) for row in known["graph_checks"])
            known["losses"] = tuple(Loss.from_json(row) for row in known["losses"])
            known["examples"] = tuple(_example(row) for row in known["examples"])
            known["routing"] = known["routing"] and RoutingOverlap(**known["routing"])
        except (KeyError, TypeError) as error:
            raise UserError(f"not a tenp-edge validation report ({error})", "validate again") from (
                error
            )
        return cls(**known)


def _example(raw: Mapping[str, Any]) -> Disagreement:
    guesses = {
        whose: tuple(Guess(**guess) for guess in raw[whose]) for whose in ("reference", "candidate")
    }
    return Disagreement(**{**raw, **guesses})


def load_report(file: Path) -> ValidationReport:
    """The report in ``file`` (validation.json)."""
    return ValidationReport.from_json(read_json(file))


def validate(
    reference: Path,
    candidate: Path,
    domains: Sequence[Domain],
    *,
    device: str = "auto",
    dtype: str = "auto",
    threads: int | None = None,
    predicted_peak_rss: int | None = None,
    memory_run: MemoryRun | None = None,
    twin: bool = False,
    split: bool = True,
    pruned_by: PrunedBy | None = None,
    work: Path | None = None,
    decode: Decode | None = None,
    progress: Progress = QUIET,
) -> ValidationReport:
    """Compare ``candidate`` (what an exporter wrote: a GGUF file, an ONNX directory ...; a
    checkpoint; or a directory where `compress` put them) with ``reference``.

    ``memory_run``: a run of the file whose peak RSS is measured, beside its prediction:
    ``predicted_peak_rss`` if given (of the candidate, not of its twin), else the runtime's answer.
    ``split``: also run the stages between the two; ``pruned_by`` names the pruned model where it
    does not lie beside the candidate. ``work``: where the twin and spilled hidden states may lie,
    beside the candidate if None; nothing stays there. ``decode``: tokens as text, for the places
    where the two disagree most. Raises UserError when the two are different models.
    """
    candidate, writer = _candidate_model(Path(candidate), progress)
    source = ModelSource(Checkpoint(Path(reference)))
    if writer is not None:
        domains = _fitting(domains, writer.sequence_limit(candidate), progress)
    where = choose_device(device)
    # bf16's own rounding flips near-tied routing, and would be counted as the candidate's loss.
    kind = choose_dtype("float32" if dtype == "auto" else dtype, where, source.checkpoint.dtype)
    with _scratch(work, candidate) as scratch:
        run = Run(source, scored_text(domains), where, kind, threads, scratch, progress)
        before: tuple[Stage, ...] = ()
        note, findings, pruned = None, Findings(), None
        if writer is None:
            stage = _checkpoint_stage(run, candidate)
        else:
            request = _request(run, split, memory_run, predicted_peak_rss, twin)
            judge = writer.judge(candidate, request)
            stage, findings = Stage(judge.step, judge.through, judge.open), judge.findings
            if split:
                before, note, pruned = _weight_stages(
                    run, candidate, writer, pruned_by or PrunedBy()
                )
        worst = None if decode is None else Disagreements(run.batch)
        losses = measure_losses(run, [*before, stage], worst)
    return ValidationReport(
        reference=str(reference),
        candidate=str(candidate),
        judged_through=stage.through,
        device=str(where),
        dtype=str(kind).removeprefix("torch."),
        domains=losses[-1].domains,
        overall=losses[-1].overall,
        losses=losses if split else (),
        losses_note=note,
        routing=_routing(run, pruned),
        examples=() if worst is None or decode is None else worst.found(decode),
        **vars(findings),
    )


def _request(
    run: Run, split: bool, memory: MemoryRun | None, predicted: int | None, twin: bool
) -> JudgeRequest:
    batch = run.batch
    return JudgeRequest(
        reference=run.source,
        tokens=batch.tokens,
        lengths=tuple(batch.lengths.tolist()),
        first=first_scored(batch),
        spans=batch.spans,
        device=run.device,
        threads=run.threads,
        scratch=run.scratch,
        split=split,
        memory=memory,
        predicted_peak_rss=predicted,
        twin=twin,
        progress=run.progress,
    )


# -- the stages before it runs ---------------------------------------------------------------------


def _weight_stages(
    run: Run, path: Path, writer: Exporter, pruned_by: PrunedBy
) -> tuple[tuple[Stage, ...], str | None, ModelSource | None]:
    """The models between the reference and the exported ``path``, in torch; what is missing; and
    the pruned one, if it is known."""
    try:
        stored = writer.read_back(path, run.source.config)
    except UserError as error:
        return (), f"the file's weights cannot be read back: {error.message}", None
    pruned = find_pruned(run.source, stored, path, pruned_by)
    through = "the file's weights, layer by layer"
    last = run.weight_stage(QUANTISATION, through, stored, DECODED)
    if pruned is None:
        named = f" of plan {stored.plan_digest[:12]}" if stored.plan_digest else ""
        note = (
            f"pruning and quantisation are not told apart: no plan.json or checkpoint{named} lies "
            "beside the file (--plan PLAN.JSON or --checkpoint DIR names it)"
        )
        return (replace(last, name=BOTH),), note, None
    return (run.weight_stage(PRUNING, TRANSFORMERS, pruned, PRUNED), last), None, pruned


def _routing(run: Run, pruned: ModelSource | None) -> RoutingOverlap | None:
    """Of the last weights that ran in torch, those of the file where they could be read."""
    chosen = [run.routed[name] for name in (CANDIDATE, DECODED, PRUNED) if name in run.routed]
    plan = None if pruned is None else pruned.plan
    numbers = None
    if plan is not None and plan.removes_experts:
        numbers = {layer: torch.tensor(plan.kept_experts(layer)) for layer in plan.widths}
    return overlap(run.routed[REFERENCE], chosen[0], run.batch, numbers) if chosen else None


def _checkpoint_stage(run: Run, path: Path) -> Stage:
    """A pruned checkpoint, which runs like the reference itself."""
    candidate = ModelSource(Checkpoint(path))
    config, other = run.source.config, candidate.config
    require_family(path, config.family.model_type, other.family.model_type)
    require_sizes(path, {name: (getattr(config, name), getattr(other, name)) for name in _SIZES})
    return run.weight_stage(PRUNING, TRANSFORMERS, candidate, CANDIDATE)


# -- files -----------------------------------------------------------------------------------------


def _candidate_model(path: Path, progress: Progress) -> tuple[Path, Exporter | None]:
    """The model at ``path`` and the format it was exported to, None for a checkpoint; what was
    found in a directory is said."""
    known: tuple[Path, Exporter | None] | None = recognise(path)
    if known is None:
        located = locate(path)
        known = located.path, None if located.kind == "checkpoint" else exporter(located.kind)
    if path.is_dir() and known[0] != path:
        progress.note(f"validating {known[0]}")
    return known


def _fitting(
    domains: Sequence[Domain], max_tokens: int | None, progress: Progress
) -> Sequence[Domain]:
    """``domains`` cut to sequences of ``max_tokens`` tokens, which the file can hold."""
    if max_tokens is None or all(domain.tokens.shape[1] <= max_tokens for domain in domains):
        return domains
    progress.note(f"the file holds {max_tokens} tokens: longer sequences are cut there")
    return [
        Domain(domain.name, domain.tokens[:, :max_tokens], domain.lengths.clamp(max=max_tokens))
        for domain in domains
    ]


@contextmanager
def _scratch(work: Path | None, candidate: Path) -> Iterator[Path]:
    """A directory for the twin and spilled states, removed at the end.

    Its name is fixed, so that what a killed run left there is removed by the next.
    """
    scratch = (work or candidate.parent) / f".{candidate.name}.validation"
    with one_writer_of(scratch):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
