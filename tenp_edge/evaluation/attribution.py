"""Where the loss comes from: the models between the reference and the file, one after the other.

    reference -> pruned, unquantised -> the file's weights, decoded -> the file as it runs
              pruning              quantisation                  runtime

Every stage is a source of logits over the same tokens and is compared with the reference, sequence
by sequence: nothing is stored or rounded, and at most two models are at work at a time. The first
two stages run in torch like the reference itself, layer by layer, so that the steps between them
are those of the weights alone; what the last one adds is the runtime's own arithmetic (quantised
activations, its kernels and their order). A format brings stages, not code of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from tenp_edge.checkpoint.source import ModelSource, WeightSource
from tenp_edge.errors import UserError
from tenp_edge.evaluation.disagreements import Disagreements
from tenp_edge.evaluation.divergence import (
    DomainScores,
    TokenScores,
    concatenate,
    score_tokens,
    scored_positions,
    scored_rows,
    standard_error,
    summarise,
)
from tenp_edge.evaluation.routing import Choices
from tenp_edge.forward.sweep import Sequences, streamed
from tenp_edge.forward.text_batch import Domain, TextBatch
from tenp_edge.progress import Progress, begin

PRUNING, QUANTISATION = "pruning", "quantisation"
BOTH = "pruning, quantisation"
# Models that run in torch, as progress and `Run.routed` call them.
REFERENCE, PRUNED, DECODED, CANDIDATE = "reference", "pruned", "decoded", "candidate"
TRANSFORMERS = "transformers, layer by layer"
NOTHING_CUT = "nothing was cut"


@dataclass(frozen=True)
class Stage:
    """One model on the road. ``name``: the step that leads to it; ``through``: where it runs.

    ``open`` gives its logits [positions from batch.first on, vocab] of every sequence of the batch;
    None for the reference itself.
    """

    name: str
    through: str
    open: Callable[[], AbstractContextManager[Iterable[torch.Tensor]]] | None


@dataclass(frozen=True)
class Loss:
    """What is lost after a stage, against the reference; ``added_kl``: mean KL over that of the
    stage before, in nats (the steps add up to the file's own)."""

    stage: str
    through: str
    added_kl: float
    domains: tuple[DomainScores, ...]
    overall: DomainScores

    @classmethod
    def from_json(cls, raw: Mapping[str, object]) -> Loss:
        """Raises TypeError or KeyError when it is not one."""
        row: dict[str, object] = dict(raw)
        row["domains"] = tuple(DomainScores(**domain) for domain in row["domains"])  # type: ignore[attr-defined]
        row["overall"] = DomainScores(**row["overall"])  # type: ignore[arg-type]
        return cls(**row)  # type: ignore[arg-type]


def scored_text(domains: Sequence[Domain]) -> TextBatch:
    """The sequences of ``domains`` that have a token to score. Raises UserError without any."""
    if not domains:
        raise UserError("there is no domain to validate on", "--data NAME=FILE")
    return TextBatch.of([scored_rows(domain, "--data") for domain in domains]).trimmed()


def first_scored(text: TextBatch) -> int:
    """The first position that any sequence scores."""
    return min(scored_positions(length).start for length in text.lengths.tolist())


@dataclass(frozen=True)
class Run:
    """What every stage of one validation shares; ``source`` is the reference, ``batch`` the text
    (`scored_text`)."""

    source: ModelSource
    batch: TextBatch
    device: torch.device
    dtype: torch.dtype
    threads: int | None
    scratch: Path
    progress: Progress
    routed: dict[str, Choices] = field(default_factory=dict)

    @contextmanager
    def streamed(self, source: WeightSource, name: str) -> Iterator[Sequences]:
        """The logits of ``source`` over the batch, computed one layer at a time; the experts that
        it chose are in ``routed`` under ``name``."""
        work = self.scratch / name
        work.mkdir()
        choices = self.routed[name] = Choices.of(source.config, self.batch)
        with streamed(
            source,
            self.batch.tokens,
            device=self.device,
            dtype=self.dtype,
            first_position=first_scored(self.batch),
            progress=self.progress,
            work=work,
            name=name,
            attach=choices.attach,
        ) as sequences:
            yield sequences

    def weight_stage(self, name: str, through: str, source: WeightSource, label: str) -> Stage:
        """The stage of a model whose weights run in torch; ``label`` for the progress."""
        if source is self.source:
            return Stage(name, NOTHING_CUT, None)

        @contextmanager
        def opened() -> Iterator[Iterator[torch.Tensor]]:
            with self.streamed(source, label) as sequences:
                yield sequences()

        return Stage(name, through, opened)


def measure_losses(
    run: Run, stages: Sequence[Stage], worst: Disagreements | None = None
) -> tuple[Loss, ...]:
    """Every stage against the reference, whose layers run once; ``worst`` is shown the last."""
    losses: list[Loss] = []
    begin(run.progress, REFERENCE)
    with run.streamed(run.source, REFERENCE) as reference:
        for number, stage in enumerate(stages):
            begin(run.progress, stage.name)
            before = losses[-1].overall.mean_kl if losses else 0.0
            shown = worst if number == len(stages) - 1 else None
            if stage.open is None:
                domains, overall = _compare(run, reference(), reference())
            else:
                with stage.open() as logits:
                    domains, overall = _compare(run, reference(), logits, shown)
            added = overall.mean_kl - before
            losses.append(Loss(stage.name, stage.through, added, domains, overall))
    return tuple(losses)


def _compare(
    run: Run,
    reference: Iterable[torch.Tensor],
    candidate: Iterable[torch.Tensor],
    worst: Disagreements | None = None,
) -> tuple[tuple[DomainScores, ...], DomainScores]:
    batch, scores, first = run.batch, [], first_scored(run.batch)
    with run.progress.task("comparing", len(batch), "sequences") as task:
        for row, (p, q) in enumerate(zip(reference, candidate, strict=True)):
            positions = scored_positions(int(batch.lengths[row]))
            places = slice(positions.start - first, positions.stop - first)
            targets = batch.tokens[row, positions.start + 1 : positions.stop + 1]
            scores.append(_finite(score_tokens(p[places], q[places], targets)))
            if worst is not None:
                worst.add(row, positions.start, scores[-1], p[places], q[places])
            task.advance()
    rows = tuple(
        _summary(name, [scores[row] for row in span]) for name, span in batch.spans.items()
    )
    return rows, _summary("overall", scores)


def _summary(name: str, sequences: Sequence[TokenScores]) -> DomainScores:
    means = [float(scores.kl.mean()) for scores in sequences]
    row = summarise(name, len(sequences), concatenate(sequences))
    return replace(row, kl_error=standard_error(means))


def _finite(scores: TokenScores) -> TokenScores:
    for model, nll in (("reference", scores.reference_nll), ("candidate", scores.candidate_nll)):
        if not torch.isfinite(nll).all():
            raise UserError(
                f"the {model} computes logits that are not finite",
                "--dtype float32, or a sound copy of the model",
            )
    return scores
