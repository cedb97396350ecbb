"""A compressed model against the original: KL, perplexity, agreement, and measured peak RSS.

Both models run over the same tokens and are compared sequence by sequence, so no distribution is
ever stored or rounded. The reference runs layer by layer (it may be bigger than RAM). A pruned
checkpoint runs the same way, a GGUF in its own runtime. A per-expert file can also be judged by
unmodified llama.cpp, through its padded twin: the very bytes of the file, with zeros where neurons
were cut.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from tenp_edge.checkpoint import Checkpoint, read_json
from tenp_edge.data import Domain, load_tokenizer
from tenp_edge.divergence import (
    DomainScores,
    TokenScores,
    concatenate,
    score_tokens,
    scored_positions,
    summarise,
)
from tenp_edge.errors import UserError
from tenp_edge.footprint import MemoryRun
from tenp_edge.forward import choose_device, choose_dtype, streaming_logits
from tenp_edge.progress import QUIET, Progress
from tenp_edge.runtime.llamacpp import LlamaCppModel
from tenp_edge.runtime.opening import RunOptions, open_model
from tenp_edge.runtime.peak import measure_peak_rss, predict_peak
from tenp_edge.runtime.perexpert import PerExpertModel
from tenp_edge.runtime.session import Session
from tenp_edge.runtime.twin import GgufFile, write_padded_twin
from tenp_edge.source import ModelSource

TRANSFORMERS = "transformers, layer by layer"
LLAMACPP = LlamaCppModel.runtime
PER_EXPERT = PerExpertModel.runtime
TWIN = "padded twin in unmodified llama.cpp"
# F16 flips the routing of near-ties, which would be counted against the weights.
_KV_TYPE = "F32"
_TOKENIZER_SAMPLE = 256
_CONFIGS = ("config.json", "checkpoint/config.json")


@dataclass(frozen=True)
class ValidationReport:
    """What `validate` measured. ``judged_through`` names what really ran.

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
    work: Path | None = None,
    progress: Progress = QUIET,
) -> ValidationReport:
    """Compare ``candidate`` (a checkpoint directory or a GGUF file) with ``reference``.

    ``memory_run``: a run of the file whose peak RSS is measured, beside its prediction:
    ``predicted_peak_rss`` if given (of the candidate, not of its twin), else the runtime's answer.
    ``work``: where
    the twin and spilled hidden states may lie, beside the candidate if None; nothing stays there.
    Raises UserError when the two are different models.
    """
    reference, candidate = Path(reference), _candidate_file(Path(candidate))
    source = ModelSource(Checkpoint(reference))
    where = choose_device(device)
    # bf16's own rounding flips near-tied routing, and would be counted as the candidate's loss.
    kind = choose_dtype("float32" if dtype == "auto" else dtype, where, source.checkpoint.dtype)
    with _scratch(work, candidate) as scratch:
        run = _Run(source, _Batch.of(domains), where, kind, threads, scratch, progress)
        if candidate.is_dir():
            opened = _checkpoint_judge(run, candidate)
        else:
            opened = _gguf_judge(run, candidate, predicted_peak_rss, memory_run, twin)
        with opened as judge:
            rows, overall = _compare(run, run.logits(source, "reference"), judge.logits)
    return ValidationReport(
        reference=str(reference),
        candidate=str(candidate),
        judged_through=judge.judged_through,
        device=str(where),
        dtype=str(kind).removeprefix("torch."),
        domains=rows,
        overall=overall,
        **judge.facts,
    )


# -- the tokens ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    """All domains' sequences as one, so that a layer's weights are read once.

    ``spans``: domain -> range of rows; ``first``: the first position that any sequence scores.
    """

    tokens: torch.Tensor
    lengths: tuple[int, ...]
    spans: Mapping[str, range]
    first: int

    @classmethod
    def of(cls, domains: Sequence[Domain]) -> _Batch:
        rows: list[torch.Tensor] = []
        spans: dict[str, range] = {}
        for domain in domains:
            start = len(rows)
            for tokens, length in zip(domain.tokens, domain.lengths.tolist(), strict=True):
                if scored_positions(length):
                    rows.append(tokens[:length])
            if len(rows) == start:
                raise UserError(
                    f"domain '{domain.name}' has no sequence of at least 3 tokens",
                    f"--data {domain.name}=FILE with more text",
                )
            spans[domain.name] = range(start, len(rows))
        if not rows:
            raise UserError("there is no domain to validate on", "--data NAME=FILE")
        lengths = tuple(len(row) for row in rows)
        first = min(scored_positions(length).start for length in lengths)
        return cls(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), lengths, spans, first)


@dataclass(frozen=True)
class _Run:
    """What both sides of the comparison share."""

    source: ModelSource
    batch: _Batch
    device: torch.device
    dtype: torch.dtype
    threads: int | None
    scratch: Path
    progress: Progress

    def logits(self, source: ModelSource, name: str) -> Iterator[torch.Tensor]:
        """Logits [positions from batch.first on, vocab] per sequence, one layer at a time."""
        work = self.scratch / name
        work.mkdir()
        return streaming_logits(
            source,
            self.batch.tokens,
            device=self.device,
            dtype=self.dtype,
            first_position=self.batch.first,
            progress=self.progress,
            work=work,
        )


def _compare(
    run: _Run, reference: Iterable[torch.Tensor], candidate: Iterable[torch.Tensor]
) -> tuple[tuple[DomainScores, ...], DomainScores]:
    batch, scores = run.batch, []
    with run.progress.task("comparing", len(batch.lengths), "sequences") as task:
        for row, (p, q) in enumerate(zip(reference, candidate, strict=True)):
            positions = scored_positions(batch.lengths[row])
            places = slice(positions.start - batch.first, positions.stop - batch.first)
            targets = batch.tokens[row, positions.start + 1 : positions.stop + 1]
            scores.append(_finite(score_tokens(p[places], q[places], targets)))
            task.advance()
    rows = tuple(
        summarise(name, len(span), concatenate(scores[row] for row in span))
        for name, span in batch.spans.items()
    )
    return rows, summarise("overall", len(scores), concatenate(scores))


def _finite(scores: TokenScores) -> TokenScores:
    for model, nll in (("reference", scores.reference_nll), ("candidate", scores.candidate_nll)):
        if not torch.isfinite(nll).all():
            raise UserError(
                f"the {model} computes logits that are not finite",
                "--dtype float32, or a sound copy of the model",
            )
    return scores


# -- the judges ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Judge:
    """The candidate at work: its logits as `_Run.logits` gives them, and what else was found."""

    judged_through: str
    logits: Iterable[torch.Tensor]
    facts: Mapping[str, Any]


@contextmanager
def _checkpoint_judge(run: _Run, path: Path) -> Iterator[_Judge]:
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
    yield _Judge(TRANSFORMERS, run.logits(candidate, "candidate"), {})


@contextmanager
def _gguf_judge(
    run: _Run, path: Path, predicted: int | None, memory: MemoryRun | None, twin: bool
) -> Iterator[_Judge]:
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
    with open_model(runnable, options) as model:
        judged = model.runtime if runnable == path else TWIN
        _check_sizes(path, {"vocab_size": (config.vocab_size, model.vocab_size)})
        facts: dict[str, Any] = {"tokenizer_agrees": _tokenizers_agree(model, run)}
        if memory is not None:
            facts |= _peak_facts(runnable, memory, predicted if runnable == path else None)
            facts["measured_as"] = judged
        yield _Judge(judged, _gguf_logits(model, run.batch), facts)


def _peak_facts(file: Path, run: MemoryRun, predicted: int | None) -> dict[str, int]:
    """Predicted and measured peak RSS of running ``file``."""
    if predicted is None:
        predicted = predict_peak(file, run).total_bytes
    measured = measure_peak_rss(file, **asdict(run))
    return {"predicted_peak_rss": predicted, "measured_peak_rss": measured}


def _check_sizes(path: Path, sizes: Mapping[str, tuple[int, int | None]]) -> None:
    for name, (ours, theirs) in sizes.items():
        if ours != theirs:
            raise UserError(
                f"{path} is another model: its {name} is {theirs}, the reference has {ours}",
                "the reference that this model was pruned from",
            )


def _gguf_logits(model: Session, batch: _Batch) -> Iterator[torch.Tensor]:
    for tokens, length in zip(batch.tokens, batch.lengths, strict=True):
        yield torch.from_numpy(model.logits(tokens[:length].tolist(), batch.first))


def _tokenizers_agree(model: Session, run: _Run) -> bool:
    """Whether the file's tokenizer gives the reference's ids for a piece of every domain."""
    tokenizer = load_tokenizer(run.source.checkpoint.path)
    for span in run.batch.spans.values():
        ids = run.batch.tokens[span.start, : run.batch.lengths[span.start]][:_TOKENIZER_SAMPLE]
        text = tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False)
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        if model.tokenize(text, add_special=False) != expected:
            return False
    return True


# -- files -----------------------------------------------------------------------------------------


def _candidate_file(path: Path) -> Path:
    """``path``, or the GGUF in an output directory that holds no checkpoint."""
    if path.is_dir() and not any((path / p).is_file() for p in _CONFIGS):
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) == 1:
            return ggufs[0]
    if not path.exists():
        raise UserError(f"{path} does not exist", "a pruned checkpoint or a GGUF file")
    return path


@contextmanager
def _scratch(work: Path | None, candidate: Path) -> Iterator[Path]:
    """A directory for the twin and spilled states, removed at the end.

    Its name is fixed, so that what a killed run left there is removed by the next.
    """
    scratch = (work or candidate.parent) / f".{candidate.name}.validation"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
