"""Many variants of one model measured in one pass: every layer's weights are read once for all.

The dense model runs beside its variants (plans, weights as a file would store them, ...) over the
same text, layer by layer. Variants that are alike up to a layer share their hidden states up to
there: L plans that each cut one layer cost half of L forwards. Memory: one layer as stored, one
variant's form of it, the activations of a batch, and the hidden states of every variant that
differs, which go to files when they are large.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from tenp_edge.checkpoint.files import Checkpoint, ExpertWeights
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.evaluation.divergence import ReferenceTokens, TokenScores, concatenate
from tenp_edge.evaluation.variants import DENSE, LayerKey, Planned, Variant
from tenp_edge.forward.hidden_states import SPILL_BYTES, CachedFileStates, MemoryStates, States
from tenp_edge.forward.streaming import Head, StreamingModel, check_tokens
from tenp_edge.forward.sweep import LayerObserver, Pass, default_batch_tokens, embed, run_layer
from tenp_edge.forward.text_batch import batches
from tenp_edge.progress import QUIET, Progress, Task

STATES = "variants.partial"
_SCORED_ELEMENTS = 2**22  # logits of one variant that are scored at once, float64: 32 MiB


@dataclass(frozen=True)
class Block:
    """Sequences of one length that are scored alike.

    tokens: [n, seq] int64; spans: the positions of each sequence whose next token is scored.
    """

    name: str
    tokens: torch.Tensor
    spans: tuple[range, ...]


@dataclass(frozen=True)
class RowScores:
    """One sequence of one variant. ``hits`` [tokens] bool: its top token is the true one."""

    scores: TokenScores
    hits: torch.Tensor


class LayerCache(Checkpoint):
    """A checkpoint that keeps what was read until `forget`: one layer, taken many times."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._read: dict[str, torch.Tensor] = {}
        self._experts: dict[tuple[int, int], ExpertWeights] = {}

    def forget(self) -> None:
        self._read.clear()
        self._experts.clear()

    def read(self, name: str) -> torch.Tensor:
        """The tensor ``name`` in its stored shape and dtype: the same one every time."""
        if name not in self._read:
            self._read[name] = super().read(name)
        return self._read[name]

    def expert(self, layer: int, expert: int) -> ExpertWeights:
        if (layer, expert) not in self._experts:
            self._experts[layer, expert] = super().expert(layer, expert)
        return self._experts[layer, expert]


# -- the pass --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Stream:
    """The hidden states, a block each, of all variants that are alike so far."""

    states: tuple[States, ...]


@dataclass
class DenseStates:
    """The dense model's states after the last layer, block by block [n, seq, hidden], in memory:
    kept from one measurement on some text for the next on the same."""

    blocks: tuple[States, ...] = ()

    def keep(self, stream: _Stream, blocks: Sequence[Block]) -> None:
        pairs = zip(stream.states, blocks, strict=True)
        self.blocks = tuple(MemoryStates(s.read(0, len(b.tokens))) for s, b in pairs)


class _Pool:
    """Makes streams over blocks [n, seq, hidden], in memory or in files of ``directory``."""

    def __init__(
        self,
        shapes: Sequence[tuple[int, int, int]],
        dtype: torch.dtype,
        directory: Path | None,
    ) -> None:
        self.shapes, self.dtype, self.directory = shapes, dtype, directory
        self._made = 0

    def new(self) -> _Stream:
        self._made += 1
        return _Stream(
            tuple(self._open(f"{self._made}-{b}", shape) for b, shape in enumerate(self.shapes))
        )

    def _open(self, name: str, shape: tuple[int, int, int]) -> States:
        if self.directory is None:
            return MemoryStates(torch.empty(shape, dtype=self.dtype))
        return CachedFileStates(self.directory / name, shape, self.dtype)


class Evaluator:
    """Runs variants of the model in ``cache`` over blocks of tokens.

    ``work`` gets a directory of hidden states when they are above ``spill_bytes``, for as long as
    they are needed; without it they stay in memory.
    """

    def __init__(
        self,
        cache: LayerCache,
        *,
        device: torch.device,
        dtype: torch.dtype,
        work: Path | None = None,
        spill_bytes: int = SPILL_BYTES,
        progress: Progress = QUIET,
    ) -> None:
        self.cache, self.device, self.dtype = cache, device, dtype
        self.work, self.spill_bytes, self.progress = work, spill_bytes, progress
        self.dense = StreamingModel(ModelSource(cache), device, dtype)
        self._models = {cache.config.num_experts: self.dense}

    def measure(
        self,
        variants: Sequence[Variant],
        blocks: Sequence[Block],
        title: str = "comparing",
        kept: DenseStates | None = None,
    ) -> Iterator[tuple[Block, list[list[RowScores]]]]:
        """Each block with the scores of every variant, [variants][sequences of the block].

        The reference is the dense model; ``kept`` has its states, or gets them. A block's scores
        can be let go of before the next.
        Raises UserError for tokens that the model does not have.
        """
        for block in blocks:
            check_tokens(self.cache.config, block.tokens)
        with self._pool(1 + len(variants), blocks) as pool:
            dense, streams = self._beside_dense(variants, blocks, pool, title, kept)
            reference = self._head(self.dense)
            ends = [variant.key(None) for variant in variants]
            total = len(set(ends)) * sum(len(block.tokens) for block in blocks)
            with self.progress.task("scoring", total, "sequences") as task:
                for number, block in enumerate(blocks):
                    score = _Score(block, number, dense, reference, self.cache.config.vocab_size)
                    yield block, self._score(score, variants, streams, ends, task)

    def _beside_dense(
        self,
        variants: Sequence[Variant],
        blocks: Sequence[Block],
        pool: _Pool,
        title: str,
        kept: DenseStates | None,
    ) -> tuple[_Stream, list[_Stream]]:
        if kept is not None and kept.blocks:
            return _Stream(kept.blocks), self._forward(variants, blocks, pool, title)
        dense, *streams = self._forward([Planned(), *variants], blocks, pool, title)
        if kept is not None:
            kept.keep(dense, blocks)
        return dense, streams

    @contextmanager
    def _pool(self, count: int, blocks: Sequence[Block]) -> Iterator[_Pool]:
        hidden = self.cache.config.hidden_size
        shapes = [(*block.tokens.shape, hidden) for block in blocks]
        nbytes = count * sum(n * seq * hidden * self.dtype.itemsize for n, seq, _ in shapes)
        if self.work is None:
            yield _Pool(shapes, self.dtype, None)
            return
        directory, spills = self.work / STATES, nbytes > self.spill_bytes
        shutil.rmtree(directory, ignore_errors=True)  # what a killed run left
        if spills:
            directory.mkdir(parents=True)
        try:
            yield _Pool(shapes, self.dtype, directory if spills else None)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _forward(
        self, variants: Sequence[Variant], blocks: Sequence[Block], pool: _Pool, title: str
    ) -> list[_Stream]:
        """The states after the last layer, a stream per variant; equal variants share theirs."""
        config = self.cache.config
        max_tokens = default_batch_tokens(config)
        runs = [batches(len(b.tokens), b.tokens.shape[1], max_tokens) for b in blocks]
        streams = self._embedded(variants, blocks, runs, pool)
        count = config.num_hidden_layers * len(variants)
        with self.progress.task(title, count, "layer runs") as task:
            for index in range(config.num_hidden_layers):
                streams = self._layer(index, variants, streams, runs, pool, task)
                self.cache.forget()
        return streams

    def _embedded(
        self,
        variants: Sequence[Variant],
        blocks: Sequence[Block],
        runs: Sequence[Sequence[slice]],
        pool: _Pool,
    ) -> list[_Stream]:
        made: dict[LayerKey, _Stream] = {}
        for variant in variants:
            key = variant.key(None)
            if key not in made:
                made[key] = pool.new()
                model = self._model(variant, key)
                for block, parts, states in zip(blocks, runs, made[key].states, strict=True):
                    embed(model, block.tokens, parts, states)
        return [made[variant.key(None)] for variant in variants]

    def _layer(
        self,
        index: int,
        variants: Sequence[Variant],
        streams: Sequence[_Stream],
        runs: Sequence[Sequence[slice]],
        pool: _Pool,
        task: Task,
    ) -> list[_Stream]:
        """Layer ``index`` in every form that there is of it, over the streams that need that form.

        The last form that goes on from a stream writes over it: there are never more streams than
        variants.
        """
        keys = [variant.key(index) for variant in variants]
        waiting = Counter(stream for stream, _ in set(zip(streams, keys, strict=True)))
        after: dict[tuple[_Stream, LayerKey], _Stream] = {}
        for key in dict.fromkeys(keys):
            members = [number for number, other in enumerate(keys) if other == key]
            passes = []
            for before in dict.fromkeys(streams[number] for number in members):
                waiting[before] -= 1
                after[before, key] = pool.new() if waiting[before] else before
                pairs = zip(runs, before.states, after[before, key].states, strict=True)
                passes += [Pass(*pair) for pair in pairs]
            self._run(index, variants[members[0]], key, passes)
            task.advance(len(members))
        return [after[stream, key] for stream, key in zip(streams, keys, strict=True)]

    def _run(self, index: int, variant: Variant, key: LayerKey, passes: Sequence[Pass]) -> None:
        def adapted(layer: nn.Module) -> LayerObserver:
            if key != DENSE:
                variant.adapt(index, layer, self.cache)
            return LayerObserver()

        run_layer(self._model(variant, key), index, passes, adapted)

    def _model(self, variant: Variant, key: LayerKey) -> StreamingModel:
        """The forward over ``variant``; models of as many experts share their empty layers."""
        if key == DENSE:
            return self.dense
        source = variant.source(self.cache)
        count = source.config.num_experts
        model = StreamingModel(source, self.device, self.dtype, like=self._models.get(count))
        self._models.setdefault(count, model)
        return model

    def _head(self, model: StreamingModel) -> Head:
        head = model.head()
        self.cache.forget()
        return head

    def _score(
        self,
        score: _Score,
        variants: Sequence[Variant],
        streams: Sequence[_Stream],
        ends: Sequence[LayerKey],
        task: Task,
    ) -> list[list[RowScores]]:
        """[variants][rows]: one output matrix at a time beside the reference's, equal streams
        once."""
        by_stream: dict[tuple[_Stream, LayerKey], list[RowScores]] = {}
        for key in dict.fromkeys(ends):
            variant = variants[ends.index(key)]
            head = score.reference if key == DENSE else self._head(self._model(variant, key))
            ending = [s for s, end in zip(streams, ends, strict=True) if end == key]
            distinct = list(dict.fromkeys(ending))
            by_stream |= {(stream, key): [] for stream in distinct}
            for row in range(len(score.block.tokens)):
                for stream, scores in zip(distinct, score.row(row, head, distinct), strict=True):
                    by_stream[stream, key].append(scores)
                task.advance()
        return [by_stream[pair] for pair in zip(streams, ends, strict=True)]


@dataclass(frozen=True)
class _Score:
    """The reference's side of one block, the ``number``-th: ``dense`` states and their head."""

    block: Block
    number: int
    dense: _Stream
    reference: Head
    vocab: int

    def row(self, row: int, head: Head, streams: Sequence[_Stream]) -> list[RowScores]:
        """Every stream on one sequence; the reference's logits are made once."""
        span = self.block.spans[row]
        step = max(16, _SCORED_ELEMENTS // self.vocab)
        parts: list[list[RowScores]] = [[] for _ in streams]
        for start in range(span.start, max(span.stop, span.start + 1), step):
            places = slice(start, min(start + step, span.stop))
            targets = self.block.tokens[row, places.start + 1 : places.stop + 1]
            dense = self._logits(self.reference, self.dense, row, places)
            reference = ReferenceTokens(dense, targets)
            for part, stream in zip(parts, streams, strict=True):
                logits = self._logits(head, stream, row, places)
                part.append(RowScores(reference.score(logits), logits.argmax(dim=-1) == targets))
        return [joined(part) for part in parts]

    def _logits(self, head: Head, stream: _Stream, row: int, places: slice) -> torch.Tensor:
        return head(stream.states[self.number].read(row, row + 1)[0, places])


def joined(parts: Sequence[RowScores]) -> RowScores:
    """The scores of all ``parts`` (at least one), in order."""
    scores = concatenate(part.scores for part in parts)
    return RowScores(scores, torch.cat([part.hits for part in parts]))
