"""The backward pass, layer by layer: what HEAPr and MoE-Slimming know about the loss.

The loss is the sum of the next-token cross-entropies of the calibration tokens. A first sweep
stores the hidden states that enter every layer; a second goes from the output down, with one
layer's weights and the activations of one batch in memory. What is kept per neuron is a sum over
tokens of (dL/dy . w_k)^2, never dL/dy dL/dy^T itself.

Cost: about three forwards, and (layers + 2) x tokens x hidden values on disk (32 x 512 tokens of
two domains of a 48-layer model with 2,048 features in bfloat16: 6.7 GB).
"""

from __future__ import annotations

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
    gradients_record,
    join_files,
    load_statistics,
    write_tensors,
)
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.forward.device import choose_device, choose_dtype
from tenp_edge.forward.experts import ExpertGroup, RaggedExperts, routed_experts
from tenp_edge.forward.hidden_states import FileStates, whole_file
from tenp_edge.forward.layer_job import LayerJob, Streams
from tenp_edge.forward.streaming import StreamingModel
from tenp_edge.forward.sweep import LayerObserver, Pass, each_layer, embed, run_layer
from tenp_edge.forward.text_batch import Domain, TextBatch
from tenp_edge.progress import QUIET, Progress

# A layer's activations are kept for its backward: about a hundred times the hidden states.
BATCH_TOKENS = 1024
_HEAD_ELEMENTS = 2**24
_GRADIENT = "gradient"


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

    Writes DIR/gradients.safetensors and .json, and continues after a kill; returns at once when
    they are there.
    """
    where, config = choose_device(device), checkpoint.config
    chosen = choose_dtype(dtype, where, checkpoint.dtype)
    text, layers = TextBatch.of(domains), config.num_hidden_layers
    info = {"statistics": dict(statistics.info), "dtype": str(chosen).removeprefix("torch.")}
    shape, result = (*text.tokens.shape, config.hidden_size), ".safetensors"
    job = LayerJob(directory, "gradients", info, layers, (_GRADIENT,), shape, chosen, result)
    if statistics.has_gradients:
        job.discard()  # of a run that was killed when all else was done
        return statistics
    if job.record.found() is None:
        job.begin((layers + 2) * job.states_bytes, "the backward pass")
    model = StreamingModel(ModelSource(checkpoint), where, chosen)
    walk = _Walk(job, model, text, progress)
    done = "through the backward pass"
    job.run(walk.forward, walk.backward, "backward pass", done, progress)
    record = gradients_record(directory, statistics.info)
    # Old sums lose their JSON first: it must never stand beside those of another pass.
    record.file.unlink(missing_ok=True)
    digest = join_files(job.results, directory / "gradients.safetensors")
    record.write({GRADIENTS_DIGEST: digest})
    job.discard()
    return load_statistics(directory, fresh=True)


@dataclass(frozen=True)
class _Walk:
    """Down through all layers, then up again. What enters a layer stays on the disk until the
    gradient has passed it; the job's layers are counted in the gradient's order."""

    job: LayerJob
    model: StreamingModel
    text: TextBatch
    progress: Progress

    def states(self, layer: int) -> FileStates:
        """What enters ``layer``; after the last one, what the output matrix is given."""
        return FileStates(self.job.partial / f"hidden-{layer}.bin", self.job.shape, self.job.dtype)

    @property
    def runs(self) -> list[slice]:
        return self.text.domain_runs(BATCH_TOKENS)

    def forward(self, gradient: FileStates) -> None:
        """The hidden states that are not there yet, and the gradient of the last."""

        def layer(index: int) -> None:
            if not self.states(index + 1).file.is_file():
                with whole_file(self.states(index + 1)) as after:
                    run_layer(self.model, index, [Pass(self.runs, self.states(index), after)])

        if not self.states(0).file.is_file():
            with whole_file(self.states(0)) as states:
                embed(self.model, self.text.tokens, self.runs, states)
        each_layer(self.job.layers, layer, "forward pass", self.progress)
        _loss_gradient(self.model, self.text, self.states(self.job.layers), gradient)

    def backward(self, number: int, before: Streams, after: Streams) -> None:
        """The gradient through the layer that is ``number`` from the end, and its sums."""
        index = self.job.layers - 1 - number
        self.states(index + 1).file.unlink(missing_ok=True)
        outer, named = before[_GRADIENT], dict[str, torch.Tensor]()

        def attach(layer: nn.Module) -> LayerObserver:
            return _Backward(self.model, layer, index, self.text, outer, named)

        run_layer(
            self.model, index, [Pass(self.runs, self.states(index), after[_GRADIENT])], attach
        )
        write_tensors(self.job.result(number), named)


def _loss_gradient(
    model: StreamingModel, text: TextBatch, states: FileStates, gradient: FileStates
) -> None:
    """dL/dh of the last hidden states h: through the final norm and the output matrix."""
    head = model.head()
    weight = head.rows(0, head.vocab).to(model.device, model.dtype)
    step = max(1, _HEAD_ELEMENTS // len(weight))
    for row, (tokens, length) in enumerate(zip(text.tokens, text.lengths.tolist(), strict=True)):
        hidden = states.read(row, row + 1)[0].to(model.device)
        row_gradient = torch.zeros_like(hidden)
        for start in range(0, length - 1, step):
            stop = min(start + step, length - 1)
            part = hidden[start:stop].requires_grad_()
            with torch.enable_grad():
                logits = head.capped(linear(head.norm(part), weight)).float()
                targets = tokens[start + 1 : stop + 1].to(model.device)
                loss = cross_entropy(logits, targets, reduction="sum")
            row_gradient[start:stop] = torch.autograd.grad(loss, part)[0]
        gradient.write(row, row_gradient[None].cpu())


class _Backward(LayerObserver):
    """dL/d(input) of a layer from dL/d(output), ``outer`` [n, seq, hidden], instead of its output;
    on the way the sums of its experts, which go to ``named``."""

    def __init__(
        self,
        model: StreamingModel,
        layer: nn.Module,
        index: int,
        text: TextBatch,
        outer: FileStates,
        named: dict[str, torch.Tensor],
    ) -> None:
        config, self.device = model.config, model.device
        self.index, self.text, self.outer, self.named = index, text, outer, named
        self.experts: RaggedExperts | None = None
        self.sums: dict[str, GradientObserver] = {}
        if index in config.moe_layers:
            self.experts = routed_experts(layer)
            self.sums = {
                domain: GradientObserver(len(self.experts), config.moe_intermediate_size)
                for domain in text.spans
            }

    def begin(self, run: slice) -> None:
        self.gradient = self.outer.read(run.start, run.stop).to(self.device)
        if self.experts is not None:
            self.experts.observer = self.sums[self.text.domain_of(run)]
            self.experts.active = self.text.active[run].reshape(-1).to(self.device)

    def forward(
        self, model: StreamingModel, layer: nn.Module, hidden: torch.Tensor
    ) -> torch.Tensor:
        hidden = hidden.requires_grad_()
        with torch.enable_grad():
            output = model.forward(layer, hidden)
        return torch.autograd.grad(output, hidden, self.gradient)[0]

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
            self.stats["gradient_sq"][expert] += slope.square().sum(dim=0).cpu().double()
            self.stats["taylor"][expert] += (m * slope).abs().sum(dim=0).cpu().double()

        group.padded_y.register_hook(add)  # type: ignore[no-untyped-call]

    def routed(self, chosen: torch.Tensor, output: torch.Tensor) -> None:
        pass
