"""Measure the ranges of activations: a forward over calibration text, one layer in memory.

Experts are measured on the tokens that are routed to them: what a dense graph computes for the
others saturates and is multiplied by zero. An expert that no token reached takes the ranges of its
layer's others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from tenp_edge.calibration.activation_ranges import MatrixRange, Ranges, Span, union
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.forward.experts import ExpertGroup, RaggedExperts, routed_experts
from tenp_edge.forward.hidden_states import SPILL_BYTES
from tenp_edge.forward.streaming import StreamingModel, name_in_memory
from tenp_edge.forward.sweep import LayerObserver, open_states, sweep
from tenp_edge.forward.text_batch import Domain, TextBatch
from tenp_edge.models import ModelConfig, expected_tensors
from tenp_edge.progress import QUIET, Progress

# Of every domain: a few thousand tokens.
CHUNKS = 8
_HEAD_ROWS = 512


def measure_ranges(
    source: ModelSource,
    domains: Sequence[Domain],
    *,
    device: torch.device,
    dtype: torch.dtype,
    work: Path | None = None,
    progress: Progress = QUIET,
) -> Ranges:
    """Ranges of every matrix of ``source`` (pruned already) over the first chunks of ``domains``.

    ``work``: where hidden states may lie that are too many for the memory.
    """
    text = measured_text(domains).trimmed()
    model = StreamingModel(source, device, dtype)
    ranges: dict[str, MatrixRange] = {}
    shape = (*text.tokens.shape, source.config.hidden_size)

    def attach(index: int, layer: nn.Module) -> LayerObserver:
        return _RangeObserver(source.config, index, layer, text.active.to(device), ranges)

    with open_states(shape, dtype, work, SPILL_BYTES) as states:
        sweep(model, text.tokens, states, "measuring activations", progress, attach)
        rows = (states.read(n, n + 1)[0, active] for n, active in enumerate(text.active))
        ranges |= _head(model, rows)
    return Ranges(identity(source), text.digest, text.token_count, ranges)


def identity(source: ModelSource) -> str:
    """Of the model: what was done to the weights, or the whole checkpoint."""
    return source.digest or source.checkpoint.fingerprint


def measured_text(domains: Sequence[Domain]) -> TextBatch:
    """What `measure_ranges` takes of ``domains``."""
    return TextBatch.of(domains, CHUNKS)


class _RangeObserver(LayerObserver):
    """Hooks on one layer's matrices; puts ranges by the names of their weights into ``found``.

    ``active`` [n, seq]: tokens that count.
    """

    def __init__(
        self,
        config: ModelConfig,
        index: int,
        layer: nn.Module,
        active: torch.Tensor,
        found: dict[str, MatrixRange],
    ) -> None:
        self._found = found
        self._config, self._index, self._all_active = config, index, active
        self._experts: RaggedExperts | None = None
        for name, module in _matrices(config, index, layer).items():
            module.register_forward_hook(partial(self._matrix, name))
        if index in config.expert_widths:
            self._experts = routed_experts(layer)
            self._experts.observer = self

    def begin(self, run: slice) -> None:
        active = self._all_active[run].reshape(-1)
        self._active = None if bool(active.all()) else active
        if self._experts is not None:
            self._experts.active = self._active

    def _matrix(self, name: str, module: nn.Module, given: Any, output: torch.Tensor) -> None:
        bias = getattr(module, "bias", None)
        product = output if bias is None else output - bias
        self._add(name, *(self._span(x) for x in (given[0], product, output)))

    def _add(self, name: str, *spans: Span) -> None:
        new = MatrixRange(*spans)
        self._found[name] = self._found[name] | new if name in self._found else new

    def _span(self, values: torch.Tensor) -> Span:
        rows = values.reshape(-1, values.shape[-1])
        return span_of(rows if self._active is None else rows[self._active])

    def expert(self, group: ExpertGroup) -> None:
        """One expert's tokens; what its first matrices give is computed once more."""
        assert self._experts is not None
        weights = self._experts.computed(group.expert, group.x.dtype)
        inputs, neurons = span_of(group.x), span_of(group.m)
        names = self._names(group.expert)
        for name, matrix in zip(names, weights.matrices[:-1], strict=False):
            product = span_of(linear(group.x, matrix))
            self._add(name, inputs, product, product)
        out = span_of(group.y)
        self._add(names[-1], neurons, out, out)

    def routed(self, chosen: torch.Tensor, output: torch.Tensor) -> None:
        """Nothing is quantised there."""

    def done(self, layer: nn.Module) -> None:
        if self._experts is not None:
            self._experts.observer = None
            self._complete()

    def _complete(self) -> None:
        """All experts are given the same tensor, so one range; fill in those without tokens."""
        for projection, role in enumerate(self._config.family.matrices):
            names = [self._names(e)[projection] for e in range(self._config.num_experts)]
            every = union(self._found[name] for name in names if name in self._found)
            for name in names:
                expert_range = self._found.get(name, every)
                inputs = expert_range.given if role == "down" else every.given
                self._found[name] = MatrixRange(inputs, expert_range.product, expert_range.output)

    def _names(self, expert: int) -> list[str]:
        matrices = range(len(self._config.family.matrices))
        return [self._config.expert_tensor(self._index, expert, i) for i in matrices]


def _matrices(config: ModelConfig, index: int, layer: nn.Module) -> dict[str, nn.Module]:
    """Name of the weight -> module of every matrix outside experts and router."""
    prefix = config.layer_prefix(index)
    modules = {}
    for spec in expected_tensors(config):
        if spec.layer != index or spec.expert is not None or spec.part == "router":
            continue
        if len(spec.shape) == 2:
            path = name_in_memory(config, spec).removeprefix(prefix).removesuffix(".weight")
            modules[spec.name] = layer.get_submodule(path)
    return modules


def _head(model: StreamingModel, sequences: Any) -> Mapping[str, MatrixRange]:
    """Of the output matrix, under its own name and, where it is tied, the embedding's."""
    head, whole = model.head(), union(())
    for hidden in sequences:
        for rows in hidden.split(_HEAD_ROWS):
            logits = span_of(head(rows))
            whole |= MatrixRange(span_of(head.norm(rows.to(model.device))), logits, logits)
    tied = model.config.tie_word_embeddings
    return {model.config.embedding_name if tied else "lm_head.weight": whole}


def span_of(values: torch.Tensor) -> Span:
    """Of any tensor; zero belongs to it."""
    if not values.numel():
        return Span()
    minimum, maximum = torch.aminmax(values)
    return Span(min(float(minimum), 0.0), max(float(maximum), 0.0))
