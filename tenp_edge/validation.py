"""A compressed model against the original: KL, perplexity, agreement, and measured peak RSS.

All models run over the same tokens (`losses`). The reference runs layer by layer (it may be bigger
than RAM). A pruned checkpoint runs the same way, a GGUF in its own runtime. A per-expert file can
also be judged by unmodified llama.cpp, through its padded twin: the very bytes of the file, with
zeros where neurons were cut. What a file loses is split into what pruning, quantisation and its
runtime do.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from tenp_edge.checkpoint import Checkpoint, read_json
from tenp_edge.data import load_tokenizer
from tenp_edge.divergence import DomainScores
from tenp_edge.errors import UserError
from tenp_edge.footprint import MemoryRun
from tenp_edge.forward import choose_device, choose_dtype
from tenp_edge.locking import one_writer_of
from tenp_edge.losses import (
    BOTH,
    EXPORT,
    PRUNING,
    QUANTISATION,
    RUNTIME,
    TRANSFORMERS,
    Loss,
    Run,
    Stage,
    first_scored,
    measure_losses,
    scored_text,
)
from tenp_edge.models import ModelConfig
from tenp_edge.onnx_checks import GraphCheck, check_graph
from tenp_edge.progress import QUIET, Progress
from tenp_edge.pruned import PrunedBy, find_pruned
from tenp_edge.registry import exporter
from tenp_edge.runtime.locating import locate
from tenp_edge.runtime.onnx_directory import holds_onnx, read_directory
from tenp_edge.runtime.onnx_model import OnnxModel
from tenp_edge.runtime.opening import RunOptions, open_model
from tenp_edge.runtime.peak import measure_peak_rss, predict_peak
from tenp_edge.runtime.session import Session
from tenp_edge.runtime.twin import GgufFile, write_padded_twin
from tenp_edge.source import ModelSource, StoredModel
from tenp_edge.text_batch import Domain, TextBatch

TWIN = "padded twin in unmodified llama.cpp"
# F16 flips the routing of near-ties, which would be counted against the weights.
_KV_TYPE = "F32"
_TOKENIZER_SAMPLE = 256


@dataclass(frozen=True)
class ValidationReport:
    """What `validate` measured. ``judged_through`` names what really ran.

    ``domains`` and ``overall`` are those of the candidate as it runs, the last of ``losses``;
    ``graph_checks``: the ways to run an ONNX graph, each against torch.
    ``losses_note`` says why the loss is not split, or not into all steps.
    ``predicted_peak_rss`` and ``measured_peak_rss``, in bytes, are of the same run: the file named
    by ``measured_as`` in llama.cpp; None where no prediction was given or nothing runs there.
    ``tokenizer_agrees``: whether the file's own tokenizer gives the reference's ids (GGUF only).
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

    def to_json(self) -> dict[str, Any]:
        return {"format": "tenp-edge validation", "version": 1, **asdict(self)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> ValidationReport:
        """The report that ``to_json`` gave. Raises UserError when it is not one."""
        try:
            known = {field.name: raw[field.name] for field in fields(cls)}
            known["domains"] = tuple(DomainScores(**row) for row in known["domains"])
            known["overall"] = DomainScores(**known["overall"])
            known["graph_checks"] = tuple(GraphCheck(**row) for row in known["graph_checks"])
            known["losses"] = tuple(Loss.from_json(row) for row in known["losses"])
        except (KeyError, TypeError) as error:
            raise UserError(f"not a tenp-edge validation report ({error})", "validate again") from (
                error
            )
        return cls(**known)


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
    progress: Progress = QUIET,
) -> ValidationReport:
    """Compare ``candidate`` (a GGUF file, an ONNX directory, a checkpoint, or a directory where
    `compress` put them) with ``reference``.

    ``memory_run``: a run of the file whose peak RSS is measured, beside its prediction:
    ``predicted_peak_rss`` if given (of the candidate, not of its twin), else the runtime's answer.
    ``split``: also run the stages between the two; ``pruned_by`` names the pruned model where it
    does not lie beside the candidate. ``work``: where the twin and spilled hidden states may lie,
    beside the candidate if None; nothing stays there. Raises UserError when the two are different
    models.
    """
    reference, candidate = Path(reference), _candidate_file(Path(candidate), progress)
    source = ModelSource(Checkpoint(reference))
    domains = _fitting(candidate, domains, progress)
    where = choose_device(device)
    # bf16's own rounding flips near-tied routing, and would be counted as the candidate's loss.
    kind = choose_dtype("float32" if dtype == "auto" else dtype, where, source.checkpoint.dtype)
    with _scratch(work, candidate) as scratch:
        run = Run(source, scored_text(domains), where, kind, threads, scratch, progress)
        before: tuple[Stage, ...] = ()
        note, format = None, _format(candidate)
        if format is None:
            judge = _checkpoint_judge(run, candidate)
        elif format == "onnx":
            judge = _onnx_judge(run, candidate, split)
        else:
            judge = _gguf_judge(run, candidate, predicted_peak_rss, memory_run, twin)
        if split and format is not None:
            before, note = _weight_stages(run, candidate, format, pruned_by or PrunedBy())
        losses = measure_losses(run, [*before, judge.stage])
    return ValidationReport(
        reference=str(reference),
        candidate=str(candidate),
        judged_through=judge.stage.through,
        device=str(where),
        dtype=str(kind).removeprefix("torch."),
        domains=losses[-1].domains,
        overall=losses[-1].overall,
        losses=losses if split else (),
        losses_note=note,
        **judge.facts,
    )


# -- the stages before it runs ---------------------------------------------------------------------


def _weight_stages(
    run: Run, path: Path, format: str, pruned_by: PrunedBy
) -> tuple[tuple[Stage, ...], str | None]:
    """The models between the reference and the exported ``path``, in torch; and what is missing."""
    try:
        stored = exporter(format).read_back(path, run.source.config)
    except UserError as error:
        return (), f"the file's weights cannot be read back: {error.message}"
    pruned = find_pruned(run.source, stored, path, pruned_by)
    through = "the file's weights, layer by layer"
    last = run.weight_stage(QUANTISATION, through, stored, "decoded")
    if pruned is None:
        named = f" of plan {stored.plan_digest[:12]}" if stored.plan_digest else ""
        note = (
            f"pruning and quantisation are not told apart: no plan.json or checkpoint{named} lies "
            "beside the file (--plan PLAN.JSON or --checkpoint DIR names it)"
        )
        return (replace(last, name=BOTH),), note
    return (run.weight_stage(PRUNING, TRANSFORMERS, pruned, "pruned"), last), None


# -- the judges ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judge:
    """The candidate as it runs, and what else was found out about it (fields of the report)."""

    stage: Stage
    facts: Mapping[str, Any]


def _checkpoint_judge(run: Run, path: Path) -> Judge:
    candidate = ModelSource(Checkpoint(path))
    config, other = run.source.config, candidate.config
    if config.family.model_type != other.family.model_type:
        ours, theirs = config.family.model_type, other.family.model_type
        raise UserError(
            f"{path} is another model: {theirs}, the reference is {ours}",
            "the reference that this model was pruned from",
        )
    sizes = ("num_hidden_layers", "hidden_size", "vocab_size")
    _check_sizes(path, {name: (getattr(config, name), getattr(other, name)) for name in sizes})
    return Judge(run.weight_stage(PRUNING, TRANSFORMERS, candidate, "candidate"), {})


def _gguf_judge(
    run: Run, path: Path, predicted: int | None, memory: MemoryRun | None, twin: bool
) -> Judge:
    file, config = GgufFile(path), run.source.config
    sizes = {
        "block_count": (config.num_hidden_layers, file.size("block_count")),
        "embedding_length": (config.hidden_size, file.size("embedding_length")),
    }
    _check_sizes(path, sizes)
    runnable = path
    if twin and file.layout == "per-expert":
        runnable = run.scratch / "twin.gguf"
        write_padded_twin(file, runnable, run.progress)
    options = RunOptions(
        context=run.batch.tokens.shape[1],
        threads=run.threads,
        kv_type=_KV_TYPE,
        flash_attention=False,
    )
    # Opened and closed again: what is wrong shows before the long forwards, beside which the
    # weights need not lie in memory.
    with open_model(runnable, options) as model:
        judged = model.runtime if runnable == path else TWIN
        _check_sizes(path, {"vocab_size": (config.vocab_size, model.vocab_size)})
        facts: dict[str, Any] = {"tokenizer_agrees": _tokenizers_agree(model, run)}
    if memory is not None:
        with run.progress.task("measuring peak memory", 1, "runs") as task:
            facts |= _peak_facts(runnable, memory, predicted if runnable == path else None)
            task.advance()
        facts["measured_as"] = judged

    @contextmanager
    def opened() -> Iterator[Iterator[torch.Tensor]]:
        with open_model(runnable, options) as model:
            yield _session_logits(model, run.batch)

    return Judge(Stage(RUNTIME, judged, opened), facts)


def _peak_facts(file: Path, run: MemoryRun, predicted: int | None) -> dict[str, int]:
    """Predicted and measured peak RSS of running ``file``."""
    if predicted is None:
        predicted = predict_peak(file, run).total_bytes
    measured = measure_peak_rss(file, **asdict(run))
    return {"predicted_peak_rss": predicted, "measured_peak_rss": measured}


def _onnx_judge(run: Run, path: Path, split: bool) -> Judge:
    files, config = read_directory(path), run.source.config
    ours, theirs = config.family.model_type, files.config.get("model_type")
    if ours != theirs:
        raise UserError(
            f"{path} is another model: {theirs}, the reference is {ours}",
            "the reference that this model was pruned from",
        )
    sizes = ("num_hidden_layers", "hidden_size", "vocab_size")
    _check_sizes(path, {name: (getattr(config, name), files.number(name)) for name in sizes})
    options = RunOptions(context=run.batch.tokens.shape[1], threads=run.threads)
    # As in `_gguf_judge`; the ways to run it are compared here, where the stages' weights are not.
    with OnnxModel(path, context=options.context, threads=options.threads) as model:
        facts: dict[str, Any] = {"tokenizer_agrees": _tokenizers_agree(model, run)}
        facts["graph_checks"] = check_graph(run, model, _read_back(path, config) if split else None)

    @contextmanager
    def opened() -> Iterator[Iterator[torch.Tensor]]:
        with open_model(path, options) as model:
            yield _session_logits(model, run.batch)

    return Judge(Stage(EXPORT, f"{OnnxModel.runtime} ({files.mode})", opened), facts)


def _read_back(path: Path, config: ModelConfig) -> StoredModel | None:
    try:
        return exporter("onnx").read_back(path, config)
    except UserError:
        return None  # The losses' note says why.


def _check_sizes(path: Path, sizes: Mapping[str, tuple[int, int | None]]) -> None:
    for name, (ours, theirs) in sizes.items():
        if ours != theirs:
            raise UserError(
                f"{path} is another model: its {name} is {theirs}, the reference has {ours}",
                "the reference that this model was pruned from",
            )


def _session_logits(model: Session, batch: TextBatch) -> Iterator[torch.Tensor]:
    first = first_scored(batch)
    for tokens, length in zip(batch.tokens, batch.lengths, strict=True):
        yield torch.from_numpy(model.logits(tokens[:length].tolist(), first))


def _tokenizers_agree(model: Session, run: Run) -> bool:
    """Whether the model's own tokenizer gives the reference's ids for a piece of every domain."""
    tokenizer = load_tokenizer(run.source.checkpoint.path)
    for span in run.batch.spans.values():
        ids = run.batch.tokens[span.start, : run.batch.lengths[span.start]][:_TOKENIZER_SAMPLE]
        text = tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        if model.tokenize(text, add_special=False) != expected:
            return False
    return True


# -- files -----------------------------------------------------------------------------------------


def _candidate_file(path: Path, progress: Progress) -> Path:
    """The model at ``path``; what was found in a directory is said."""
    found = locate(path).path
    if found != path:
        progress.note(f"validating {found}")
    return found.parent if found.suffix == ".onnx" else found


def _fitting(candidate: Path, domains: Sequence[Domain], progress: Progress) -> Sequence[Domain]:
    """``domains`` cut to sequences that graphs of fixed shapes can hold."""
    if _format(candidate) != "onnx":
        return domains
    most = read_directory(candidate).context
    if all(domain.tokens.shape[1] <= most for domain in domains):
        return domains
    progress.note(f"the graphs hold {most} tokens: longer sequences are cut there")
    return [
        Domain(domain.name, domain.tokens[:, :most], domain.lengths.clamp(max=most))
        for domain in domains
    ]


def _format(path: Path) -> str | None:
    """What was exported to ``path``; None for a checkpoint (and for whatever else it is)."""
    if path.is_dir():
        return "onnx" if holds_onnx(path) else None
    return "gguf"


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
