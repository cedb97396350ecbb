"""Many forms of one model measured together: every layer's weights are read once for all of them.

The dense model runs beside its variants (plans, or weights as a file would store them), layer by
layer, on the same tokens. Variants that are the same up to a layer share their hidden states up to
there: L plans that each cut one layer cost half of L forwards. Peak memory is one layer twice (as
read, and as one variant has it) and the states of every variant that differs, which go to files in
``work`` when they are large.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tenp_edge.checkpoint import Checkpoint, ExpertWeights
from tenp_edge.divergence import (
    DomainScores,
    ReferenceTokens,
    TokenScores,
    concatenate,
    scored_positions,
    summarise,
)
from tenp_edge.forward import (
    Head,
    StreamingModel,
    check_tokens,
)
from tenp_edge.plan import CompressionPlan
from tenp_edge.progress import QUIET, Progress
from tenp_edge.source import ModelSource, WeightSource
from tenp_edge.states import SPILL_BYTES, FileStates, MemoryStates, States
from tenp_edge.sweep import default_batch_tokens
from tenp_edge.text_batch import Domain, TextBatch

LayerKey = bytes
DENSE: LayerKey = b""


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
class Variant:
    """One form of the model. ``key``: equal for two variants exactly when a layer is the same in
    both, DENSE where it is the checkpoint's own. ``ends``: where embeddings and output matrix come
    from, None where they are the checkpoint's own too."""

    source: WeightSource
    key: Callable[[int], LayerKey]
    ends: WeightSource | None = None


@dataclass(frozen=True)
class Measured:
    """One variant against the dense model: a row per domain, and all tokens together."""

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
    cached = LayerCache(checkpoint.path)
    variants = [_planned(ModelSource(cached, plan), plan) for plan in plans]
    return measure_variants(
        cached,
        variants,
        domains,
        device=device,
        dtype=dtype,
        work=work,
        spill_bytes=spill_bytes,
        progress=progress,
    )


def measure_variants(
    checkpoint: Checkpoint,
    variants: Sequence[Variant],
    domains: Sequence[Domain],
    *,
    device: torch.device,
    dtype: torch.dtype,
    work: Path | None = None,
    spill_bytes: int = SPILL_BYTES,
    progress: Progress = QUIET,
    what: str = "plans",
) -> list[Measured]:
    """`measure_plans` for any ``variants``, whose sources best read from a `LayerCache`."""
    for domain in domains:
        check_tokens(checkpoint.config, domain.tokens)
    rows = TextBatch.of(domains)
    streams = [Variant(ModelSource(checkpoint), lambda layer: DENSE), *variants]
    shape = (*rows.tokens.shape, checkpoint.config.hidden_size)
    spill = work if len(streams) * _bytes(shape, dtype) > spill_bytes else None
    with contextlib.ExitStack() as stack:
        pool = _Pool(shape, dtype, spill, stack)
        final = _run(streams, rows, pool, device, dtype, progress, what)
        return _score(streams, rows, final, device, dtype, progress)


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return shape[0] * shape[1] * shape[2] * dtype.itemsize


def _planned(source: ModelSource, plan: CompressionPlan) -> Variant:
    """The model that ``plan`` leaves; a layer in which nothing is cut is the dense one."""

    def key(layer: int) -> LayerKey:
        if layer not in plan.widths or all(w == plan.full_width for w in plan.widths[layer]):
            return DENSE
        neurons = [plan.neurons(layer, expert) for expert in range(len(plan.widths[layer]))]
        widths = torch.tensor([len(kept) for kept in neurons])
        return bytes(torch.cat([widths, *neurons]).numpy().tobytes())

    return Variant(source, key)


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
    streams: Sequence[Variant],
    rows: TextBatch,
    pool: _Pool,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress,
    what: str,
) -> list[States]:
    """The states after the last layer, one per stream; equal streams share theirs."""
    dense = StreamingModel(streams[0].source, device, dtype)
    runs = rows.runs(default_batch_tokens(dense.config))
    first: dict[int, States] = {}
    for ends in {id(stream.ends): stream.ends for stream in streams}.values():
        model = dense if ends is None else dense.with_source(ends)
        first[id(ends)] = pool.new()
        for run in runs:
            first[id(ends)].write(run.start, model.embed(rows.tokens[run]))
    states = [first[id(stream.ends)] for stream in streams]
    layers = dense.config.num_hidden_layers
    with progress.task(f"measuring {len(streams) - 1} {what}", layers, "layers") as task:
        for index in range(layers):
            states = _run_layer(dense, streams, states, index, runs, pool)
            task.advance()
    return states


def _run_layer(
    dense: StreamingModel,
    streams: Sequence[Variant],
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
    streams: Sequence[Variant],
    rows: TextBatch,
    final: Sequence[States],
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress,
) -> list[Measured]:
    dense = StreamingModel(streams[0].source, device, dtype)
    reference = dense.head()
    scores: list[list[TokenScores]] = [[] for _ in streams]
    groups = {id(stream.ends): stream.ends for stream in streams}
    with progress.task("comparing", len(groups) * len(rows.lengths), "sequences") as task:
        for ends in groups.values():  # one output matrix beside the reference's
            head = reference if ends is None else dense.with_source(ends).head()
            members = [i for i, stream in enumerate(streams) if stream.ends is ends]
            for row in range(len(rows.lengths)):
                found = _score_row(rows, row, final, members, reference, head)
                for member, own in found.items():
                    scores[member].append(own)
                task.advance()
    return [_summary(rows, own) for own in scores[1:]]


def _score_row(
    rows: TextBatch,
    row: int,
    final: Sequence[States],
    members: Sequence[int],
    reference: Head,
    head: Head,
) -> dict[int, TokenScores]:
    """The ``members`` of one output matrix on one sequence; equal states are scored once."""
    positions = scored_positions(int(rows.lengths[row]))
    places = slice(positions.start, positions.stop)
    targets = rows.tokens[row, positions.start + 1 : positions.stop + 1]
    dense = ReferenceTokens(reference(final[0].read(row, row + 1)[0, places]), targets)
    known: dict[int, TokenScores] = {}
    for member in members:
        states = final[member]
        if id(states) not in known:
            known[id(states)] = dense.score(head(states.read(row, row + 1)[0, places]))
    return {member: known[id(final[member])] for member in members}


def _summary(rows: TextBatch, scores: Sequence[TokenScores]) -> Measured:
    by_domain = tuple(
        summarise(name, len(span), concatenate(scores[row] for row in span))
        for name, span in rows.spans.items()
    )
    return Measured(by_domain, summarise("overall", len(scores), concatenate(scores)))
