"""Many plans of one model measured together: every layer's weights are read once for all of them.

The dense model runs beside the plans, layer by layer, on the same tokens. Plans that are the same
up to a layer share their hidden states up to there: L plans that each cut one layer cost half of L
forwards. Peak memory is one layer twice (as read, and as one plan slices it) and the states of
every plan that differs, which go to files in ``work`` when they are large.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tenp_edge.checkpoint import Checkpoint, ExpertWeights
from tenp_edge.data import Domain
from tenp_edge.divergence import (
    DomainScores,
    ReferenceTokens,
    TokenScores,
    concatenate,
    scored_positions,
    summarise,
)
from tenp_edge.forward import StreamingModel, batches, check_tokens, default_batch_tokens
from tenp_edge.plan import CompressionPlan
from tenp_edge.progress import QUIET, Progress
from tenp_edge.source import ModelSource
from tenp_edge.states import SPILL_BYTES, FileStates, MemoryStates, States

LayerKey = bytes
_DENSE: LayerKey = b""


class LayerCache(Checkpoint):
    """A checkpoint that remembers the experts of the layer last read."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._layer: int | None = None
        self._experts: dict[int, ExpertWeights] = {}

    def expert(self, layer: int, expert: int) -> ExpertWeights:
        if layer != self._layer:
            self._layer, self._experts = layer, {}
        if expert not in self._experts:
            self._experts[expert] = super().expert(layer, expert)
        return self._experts[expert]


@dataclass(frozen=True)
class Measured:
    """One plan against the dense model: a row per domain, and all tokens together."""

    domains: tuple[DomainScores, ...]
    overall: DomainScores

    @property
    def mean_kl(self) -> float:
        """Nats per token, every domain weighing the same."""
        return sum(row.mean_kl for row in self.domains) / len(self.domains)


def measure_plans(
    checkpoint: Checkpoint,
    plans: Sequence[CompressionPlan],
    domains: Sequence[Domain],
    *,
    device: torch.device,
    dtype: torch.dtype,
    work: Path | None = None,
    spill_bytes: int = SPILL_BYTES,
    progress: Progress = QUIET,
) -> list[Measured]:
    """Each of ``plans`` (with neurons) against the dense model on ``domains``, in their order.

    Scored on the second half of every sequence, as `validation` does. Hidden states go to files in
    ``work`` when those of all plans together are above ``spill_bytes``. Raises UserError for plans
    of another checkpoint and tokens that the model does not have.
    """
    for domain in domains:
        check_tokens(checkpoint.config, domain.tokens)
    rows = _Rows(domains)
    cached = LayerCache(checkpoint.path)
    streams = [_Stream(ModelSource(cached), None)]
    streams += [_Stream(ModelSource(cached, plan), plan) for plan in plans]
    shape = (*rows.tokens.shape, checkpoint.config.hidden_size)
    spill = work if len(streams) * _bytes(shape, dtype) > spill_bytes else None
    with contextlib.ExitStack() as stack:
        pool = _Pool(shape, dtype, spill, stack)
        final = _run(streams, rows, pool, device, dtype, progress)
        return _score(streams, rows, final, device, dtype, progress)


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return shape[0] * shape[1] * shape[2] * dtype.itemsize


class _Rows:
    """All domains' sequences as one, padded on the right. ``spans``: rows of each domain."""

    def __init__(self, domains: Sequence[Domain]) -> None:
        seq_len = max(domain.tokens.shape[1] for domain in domains)
        padded = []
        self.spans: list[tuple[str, range]] = []
        self.lengths: list[int] = []
        for domain in domains:
            start = len(self.lengths)
            self.lengths += domain.lengths.tolist()
            self.spans.append((domain.name, range(start, len(self.lengths))))
            rows = torch.zeros(len(domain.tokens), seq_len, dtype=torch.int64)
            rows[:, : domain.tokens.shape[1]] = domain.tokens
            padded.append(rows)
        self.tokens = torch.cat(padded)


class _Stream:
    """One plan (None: the dense model) and what it does to each layer."""

    def __init__(self, source: ModelSource, plan: CompressionPlan | None) -> None:
        self.source, self.plan = source, plan

    def key(self, layer: int) -> LayerKey:
        """Equal for two streams exactly when the layer is the same in both."""
        plan = self.plan
        if plan is None or layer not in plan.widths:
            return _DENSE
        if all(width == plan.full_width for width in plan.widths[layer]):
            return _DENSE
        neurons = [plan.neurons(layer, expert) for expert in range(len(plan.widths[layer]))]
        widths = torch.tensor([len(kept) for kept in neurons])
        return bytes(torch.cat([widths, *neurons]).numpy().tobytes())


class _Pool:
    """Makes hidden states [n, seq, hidden], in memory or in files of ``work``."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        dtype: torch.dtype,
        work: Path | None,
        stack: contextlib.ExitStack,
    ) -> None:
        self.shape, self.dtype, self.work, self._stack = shape, dtype, work, stack
        self._made = 0

    def new(self) -> States:
        if self.work is None:
            return MemoryStates(torch.empty(self.shape, dtype=self.dtype))
        self._made += 1
        file = self.work / f"hidden-{self._made}.partial"
        return self._stack.enter_context(FileStates(file, self.shape, self.dtype, temporary=True))

    def free(self, states: States) -> None:
        if isinstance(states, FileStates):
            states.file.unlink(missing_ok=True)


def _run(
    streams: Sequence[_Stream],
    rows: _Rows,
    pool: _Pool,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> list[States]:
    """The states after the last layer, one per stream; equal streams share theirs."""
    dense = StreamingModel(streams[0].source, device, dtype)
    runs = batches(len(rows.tokens), rows.tokens.shape[1], default_batch_tokens(dense.config))
    first = pool.new()
    for run in runs:
        first.write(run.start, dense.embed(rows.tokens[run]))
    states: list[States] = [first] * len(streams)
    layers = dense.config.num_hidden_layers
    with progress.task(f"measuring {len(streams) - 1} plans", layers, "layers") as task:
        for index in range(layers):
            states = _run_layer(dense, streams, states, index, runs, pool)
            task.advance()
    return states


def _run_layer(
    dense: StreamingModel,
    streams: Sequence[_Stream],
    states: list[States],
    index: int,
    runs: Sequence[slice],
    pool: _Pool,
) -> list[States]:
    after: dict[tuple[int, LayerKey], States] = {}
    keys = [stream.key(index) for stream in streams]
    for key in dict.fromkeys(keys):
        members = [i for i, own in enumerate(keys) if own == key]
        model = dense.with_source(streams[members[0]].source)
        layer = model.layer(index)
        for before in {id(states[i]): states[i] for i in members}.values():
            target = pool.new()
            for run in runs:
                hidden = before.read(run.start, run.stop).to(model.device)
                target.write(run.start, model.run(layer, hidden).cpu())
            after[id(before), key] = target
        del layer
    found = [after[id(states[i]), keys[i]] for i in range(len(streams))]
    for used in {id(old): old for old in states}.values():
        pool.free(used)
    return found


def _score(
    streams: Sequence[_Stream],
    rows: _Rows,
    final: Sequence[States],
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> list[Measured]:
    head = StreamingModel(streams[0].source, device, dtype).head()
    scores: list[list[TokenScores]] = [[] for _ in streams]
    with progress.task("comparing", len(rows.lengths), "sequences") as task:
        for row, length in enumerate(rows.lengths):
            positions = scored_positions(length)
            places = slice(positions.start, positions.stop)
            targets = rows.tokens[row, positions.start + 1 : positions.stop + 1]
            reference = head(final[0].read(row, row + 1)[0, places])
            dense = ReferenceTokens(reference, targets)
            known = {id(final[0]): dense.score(reference)}
            for number, states in enumerate(final):
                if id(states) not in known:
                    found = head(states.read(row, row + 1)[0, places])
                    known[id(states)] = dense.score(found)
                scores[number].append(known[id(states)])
            task.advance()
    return [_summary(rows, own) for own in scores[1:]]


def _summary(rows: _Rows, scores: Sequence[TokenScores]) -> Measured:
    by_domain = tuple(
        summarise(name, len(span), concatenate(scores[row] for row in span))
        for name, span in rows.spans
    )
    return Measured(by_domain, summarise("overall", len(scores), concatenate(scores)))
