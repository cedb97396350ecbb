"""Many pruned models in one forward: a layer is read once and cut for each of them in turn.

Memory: one layer as stored, one candidate's cut of it, and the activations of a batch. Every
candidate has hidden states of its own, in memory or spilled to files. Until the first layer with
routed experts all candidates are the dense model, so they begin there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from tenp_edge.checkpoint import Checkpoint, ExpertWeights
from tenp_edge.divergence import ReferenceTokens, TokenScores, concatenate
from tenp_edge.forward import (
    Head,
    StreamingModel,
    check_tokens,
)
from tenp_edge.mended import Mended
from tenp_edge.plan import CompressionPlan
from tenp_edge.progress import QUIET, Progress
from tenp_edge.source import ModelSource
from tenp_edge.states import SPILL_BYTES, CachedFileStates, MemoryStates, States
from tenp_edge.sweep import default_batch_tokens
from tenp_edge.text_batch import batches

STATES = "compare.partial"
_SCORED_ELEMENTS = 2**22  # logits of one candidate that are scored at once, float64: 32 MiB


class Candidate(Protocol):
    """One model to be measured: how it is read from the dense checkpoint."""

    def source(self, checkpoint: Checkpoint) -> ModelSource:
        """Its tensors; called once a layer, so it should be cheap."""
        ...

    def adapt(self, index: int, layer: nn.Module, checkpoint: Checkpoint) -> None:
        """Change decoder layer ``index`` beyond what `source` gives; most do nothing."""
        ...


@dataclass(frozen=True)
class Planned:
    """What a plan leaves, with what was mended in it; None is the dense model."""

    plan: CompressionPlan | None = None
    mended: Mended | None = None

    def source(self, checkpoint: Checkpoint) -> ModelSource:
        return ModelSource(checkpoint, self.plan, mended=self.mended)

    def adapt(self, index: int, layer: nn.Module, checkpoint: Checkpoint) -> None:
        pass


class LayerCache(Checkpoint):
    """A checkpoint that keeps what was read until `forget`: one layer, cut many times."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._read: dict[str, torch.Tensor] = {}
        self._experts: dict[tuple[int, int], ExpertWeights] = {}

    def forget(self) -> None:
        self._read.clear()
        self._experts.clear()

    def read(self, name: str) -> torch.Tensor:
        if name not in self._read:
            self._read[name] = super().read(name)
        return self._read[name]

    def expert(self, layer: int, expert: int) -> ExpertWeights:
        if (layer, expert) not in self._experts:
            self._experts[layer, expert] = super().expert(layer, expert)
        return self._experts[layer, expert]


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
    """One sequence of one candidate. ``hits`` [tokens] bool: its top token is the true one."""

    scores: TokenScores
    hits: torch.Tensor


class Engine:
    """Runs candidates over blocks of tokens.

    ``work`` gets a directory of hidden states when they spill, for as long as they are needed.
    """

    def __init__(
        self,
        path: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        work: Path,
        spill_bytes: int = SPILL_BYTES,
        progress: Progress = QUIET,
    ) -> None:
        self.cache = LayerCache(path)
        self.device, self.dtype = device, dtype
        self.work, self.spill_bytes, self.progress = work, spill_bytes, progress
        self.dense = StreamingModel(ModelSource(self.cache), device, dtype)
        self._models = {self.cache.config.num_experts: self.dense}

    def measure(
        self, candidates: Sequence[Candidate], blocks: Sequence[Block], title: str = "comparing"
    ) -> Iterator[tuple[Block, list[list[RowScores]]]]:
        """Each block with the scores of every candidate, [candidates][sequences of the block].

        The reference is the dense model. A block's scores can be let go of before the next.
        """
        for block in blocks:
            check_tokens(self.cache.config, block.tokens)
        with self._states(1 + len(candidates), blocks) as lanes:
            self._forward([Planned(), *candidates], blocks, lanes, title)
            head = self.dense.head()
            self.cache.forget()
            for number, block in enumerate(blocks):
                rows = [
                    self._score_row(head, block, row, lanes[number])
                    for row in range(len(block.tokens))
                ]
                yield block, [list(column) for column in zip(*rows, strict=True)]

    # The hidden states: lanes[block][candidate].

    @contextmanager
    def _states(self, count: int, blocks: Sequence[Block]) -> Iterator[list[list[States]]]:
        hidden = self.cache.config.hidden_size
        shapes = [(*block.tokens.shape, hidden) for block in blocks]
        nbytes = count * sum(n * seq * hidden * self.dtype.itemsize for n, seq, _ in shapes)
        directory, spill = self.work / STATES, nbytes > self.spill_bytes
        shutil.rmtree(directory, ignore_errors=True)  # what a killed run left
        if spill:
            directory.mkdir(parents=True)
        with ExitStack() as stack:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
            yield [
                [
                    stack.enter_context(self._open(directory / f"{b}-{c}", shape, spill))
                    for c in range(count)
                ]
                for b, shape in enumerate(shapes)
            ]

    def _open(self, file: Path, shape: tuple[int, int, int], spill: bool) -> States:
        if spill:
            return CachedFileStates(file, shape, self.dtype)
        return MemoryStates(torch.empty(shape, dtype=self.dtype))

    # The layers.

    def _forward(
        self,
        candidates: Sequence[Candidate],
        blocks: Sequence[Block],
        lanes: list[list[States]],
        title: str,
    ) -> None:
        config, most = self.cache.config, default_batch_tokens(self.cache.config)
        runs = [batches(b.tokens.shape[0], b.tokens.shape[1], most) for b in blocks]
        for block, lane, parts in zip(blocks, lanes, runs, strict=True):
            for run in parts:
                lane[0].write(run.start, self.dense.embed(block.tokens[run]))
        first = min(config.moe_layers)
        total = first + (config.num_hidden_layers - first) * len(candidates)
        with self.progress.task(title, total, "layers") as task:
            for index in range(config.num_hidden_layers):
                # The dense model comes last: at the first cut layer the others begin at its states.
                for number in reversed(range(len(candidates) if index >= first else 1)):
                    model, layer = self._layer(candidates[number], index)
                    origin = 0 if index <= first else number
                    for lane, parts in zip(lanes, runs, strict=True):
                        for run in parts:
                            hidden = lane[origin].read(run.start, run.stop).to(self.device)
                            lane[number].write(run.start, model.run(layer, hidden).cpu())
                    del layer
                    task.advance()
                self.cache.forget()

    def _layer(self, candidate: Candidate, index: int) -> tuple[StreamingModel, nn.Module]:
        source = candidate.source(self.cache)
        count = source.config.num_experts
        model = StreamingModel(source, self.device, self.dtype, like=self._models.get(count))
        self._models.setdefault(count, model)
        layer = model.layer(index)
        candidate.adapt(index, layer, self.cache)
        return model, layer

    # The output.

    def _score_row(
        self, head: Head, block: Block, row: int, lanes: Sequence[States]
    ) -> list[RowScores]:
        """Every candidate on one sequence; the reference's logits are made once."""
        span = block.spans[row]
        step = max(16, _SCORED_ELEMENTS // self.cache.config.vocab_size)
        found: list[list[RowScores]] = [[] for _ in lanes[1:]]
        for start in range(span.start, span.stop, step):
            places = slice(start, min(start + step, span.stop))
            targets = block.tokens[row, places.start + 1 : places.stop + 1]
            reference = ReferenceTokens(self._logits(head, lanes[0], row, places), targets)
            for parts, lane in zip(found, lanes[1:], strict=True):
                logits = self._logits(head, lane, row, places)
                hits = logits.argmax(dim=-1) == targets
                parts.append(RowScores(reference.score(logits), hits))
        return [joined(parts) for parts in found]

    def _logits(self, head: Head, lane: States, row: int, places: slice) -> torch.Tensor:
        return head(lane.read(row, row + 1)[0, places])


def joined(parts: Sequence[RowScores]) -> RowScores:
    """The scores of all ``parts`` (at least one), in order."""
    scores = concatenate(part.scores for part in parts)
    return RowScores(scores, torch.cat([part.hits for part in parts]))
