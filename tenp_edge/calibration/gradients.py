"""The backward pass, layer by layer: what HEAPr and MoE-Slimming know about the loss.

The loss is the sum of the next-token cross-entropies of the calibration tokens. A first sweep
stores the hidden states that enter every layer; a second goes from the output down, with one
layer's weights and the activations of one batch in memory. What is kept per neuron is a sum over
tokens of (dL/dy . w_k)^2, never dL/dy dL/dy^T itself.

Cost: about three forwards, and (layers + 2) x tokens x hidden values on disk (32 x 512 tokens of
two domains of a 48-layer model with 2,048 features in bfloat16: 6.7 GB).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear

from tenp_edge.calibration.statistics import GRADIENT_SUMS, LayerStatistics
from tenp_edge.calibration.storage import (
    GRADIENTS_DIGEST,
    Statistics,
    load_statistics,
    write_tensors,
)
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.disk import require_free, write_text
from tenp_edge.forward.device import choose_device, choose_dtype
from tenp_edge.forward.experts import ExpertGroup, RaggedExperts, routed_experts
from tenp_edge.forward.hidden_states import FileStates
from tenp_edge.forward.streaming import StreamingModel
from tenp_edge.forward.sweep import LayerObserver, Pass, embed, run_layer
from tenp_edge.forward.text_batch import Domain, TextBatch
from tenp_edge.progress import QUIET, Progress

# A layer's activations are kept for its backward: about a hundred times the hidden states.
BATCH_TOKENS = 1024
_HEAD_ELEMENTS = 2**24


def collect_gradients(
    checkpoint: Checkpoint,
    domains: Sequence[Domain],
    statistics: Statistics,
    directory: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress = QUIET,
) -> Statistics:
    """``statistics`` (in ``directory``, of the same ``domains``) with the sums of a backward pass.

    Writes DIR/gradients.safetensors and .json; returns at once when they are there.
    """
    work = directory / "gradients.partial"
    shutil.rmtree(work, ignore_errors=True)  # of a killed run, finished or not
    if statistics.has_gradients:
        return statistics
    where = choose_device(device)
    model = StreamingModel(
        ModelSource(checkpoint), where, choose_dtype(dtype, where, checkpoint.dtype)
    )
    layers = checkpoint.config.num_hidden_layers
    space = _Space(work, TextBatch.of(domains), model)
    require_free(directory, (layers + 2) * space.states(0).nbytes, "the backward pass")
    work.mkdir(parents=True)
    embed(model, space.text.tokens, space.runs, space.states(0))
    with progress.task("backward pass", 3 * layers, "layers") as task:
        for index in range(layers):
            run_layer(
                model, index, [Pass(space.runs, space.states(index), space.states(index + 1))]
            )
            task.advance()
        _loss_gradient(model, space, space.states(layers))
        named: dict[str, torch.Tensor] = {}
        for index in reversed(range(layers)):
            named |= _backward(model, index, space)
            task.advance(2)
    # Old sums lose their JSON first: it must never stand beside those of another pass.
    (directory / "gradients.json").unlink(missing_ok=True)
    digest = write_tensors(directory / "gradients.safetensors", named)
    info = {**statistics.info, GRADIENTS_DIGEST: digest}
    write_text(directory / "gradients.json", json.dumps(info, indent=1) + "\n")
    shutil.rmtree(work)
    return load_statistics(directory, fresh=True)


@dataclass(frozen=True)
class _Space:
    """The hidden states of every layer, and the gradient with regard to them, on disk."""

    work: Path
    text: TextBatch
    model: StreamingModel

    def states(self, layer: int) -> FileStates:
        """What enters ``layer``; after the last one, what the output matrix is given."""
        return self._file(f"hidden-{layer}.bin")

    @property
    def gradient(self) -> FileStates:
        return self._file("gradient.bin")

    def _file(self, name: str) -> FileStates:
        shape = (*self.text.tokens.shape, self.model.config.hidden_size)
        return FileStates(self.work / name, shape, self.model.dtype)

    @property
    def runs(self) -> list[slice]:
        return self.text.domain_runs(BATCH_TOKENS)


def _loss_gradient(model: StreamingModel, space: _Space, states: FileStates) -> None:
    """dL/dh of the last hidden states h: through the final norm and the output matrix."""
    head = model.head()
    weight = head.rows(0, head.vocab).to(model.device, model.dtype)
    step = max(1, _HEAD_ELEMENTS // len(weight))
    gradient = space.gradient
    for row, (tokens, length) in enumerate(
        zip(space.text.tokens, space.text.lengths.tolist(), strict=True)
    ):
        hidden = states.read(row, row + 1)[0].to(model.device)
        found = torch.zeros_like(hidden)
        for start in range(0, length - 1, step):
            stop = min(start + step, length - 1)
            part = hidden[start:stop].requires_grad_()
            with torch.enable_grad():
                logits = head.capped(linear(head.norm(part), weight)).float()
                targets = tokens[start + 1 : stop + 1].to(model.device)
                loss = cross_entropy(logits, targets, reduction="sum")
            found[start:stop] = torch.autograd.grad(loss, part)[0]
        gradient.write(row, found[None].cpu())


def _backward(model: StreamingModel, index: int, space: _Space) -> dict[str, torch.Tensor]:
    """Take the gradient through layer ``index``; its sums under their stored names."""
    states, named = space.states(index), dict[str, torch.Tensor]()

    def attach(layer: nn.Module) -> LayerObserver:
        return _Backward(layer, space, index, named)

    run_layer(model, index, [Pass(space.runs, states, space.gradient)], attach)
    states.file.unlink()
    return named


class _Backward(LayerObserver):
    """dL/d(input) of a layer from dL/d(output), [n, seq, hidden], instead of its output; on the way
    the sums of its experts, which go to ``named``."""

    def __init__(
        self, layer: nn.Module, space: _Space, index: int, named: dict[str, torch.Tensor]
    ) -> None:
        config = space.model.config
        self.space, self.index, self.named = space, index, named
        self.experts: RaggedExperts | None = None
        self.sums: dict[str, GradientObserver] = {}
        if index in config.moe_layers:
            self.experts = routed_experts(layer)
            self.sums = {
                domain: GradientObserver(len(self.experts), config.moe_intermediate_size)
                for domain in space.text.spans
            }

    def begin(self, run: slice) -> None:
        device = self.space.model.device
        self.outer = self.space.gradient.read(run.start, run.stop).to(device)
        if self.experts is not None:
            self.experts.observer = self.sums[self.space.text.domain_of(run)]
            self.experts.active = self.space.text.active[run].reshape(-1).to(device)

    def forward(
        self, model: StreamingModel, layer: nn.Module, hidden: torch.Tensor
    ) -> torch.Tensor:
        hidden = hidden.requires_grad_()
        with torch.enable_grad():
            output = model.forward(layer, hidden)
        return torch.autograd.grad(output, hidden, self.outer)[0]

    def done(self, layer: nn.Module) -> None:
        for domain, observer in self.sums.items():
            for name, value in observer.stats.sums.items():
                self.named[f"{domain}/layers.{self.index}.{name}"] = value.float()


class GradientObserver:
    """Adds GRADIENT_SUMS of every expert while the gradient passes through its output."""

    def __init__(self, experts: int, width: int) -> None:
        zeros = {name: torch.zeros(experts, width, dtype=torch.float64) for name in GRADIENT_SUMS}
        self.stats = LayerStatistics(zeros)

    def expert(self, group: ExpertGroup) -> None:
        expert, m, down = group.expert, group.m.detach().float(), group.down.float()

        def add(gradient: torch.Tensor) -> None:
            slope = gradient[: len(m)].float() @ down  # dL/dm_k = dL/dy . w_k, (tokens, width)
            self.stats["gradient_sq"][expert] += slope.square().sum(dim=0).double().cpu()
            self.stats["taylor"][expert] += (m * slope).abs().sum(dim=0).double().cpu()

        group.padded_y.register_hook(add)  # type: ignore[no-untyped-call]

    def routed(self, chosen: torch.Tensor, output: torch.Tensor) -> None:
        pass
