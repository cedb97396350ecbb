"""Healing: a layer's router (and its norms) trained for a moment against the dense layer.

Layer by layer, so that any model fits: the pruned layer is fed the pruned stream and should put out
what the dense layer puts out on the dense stream. The loss of a token is ||h' - h'_dense||^2 /
||h'_dense||^2. A fifth of the sequences is held out; what does best on them is kept, and that may
be the layer as it was: healing never makes the held-out loss worse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from tenp_edge.checkpoint.files import TORCH_DTYPES
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.forward.hidden_states import States
from tenp_edge.forward.streaming import StreamingModel, name_in_memory

HEALS: Mapping[str, tuple[str, ...]] = {
    "routers": ("router",),
    "norms": ("router", "input_norm", "post_attention_norm"),
}
EPOCHS = 4
# Of a tensor's root mean square, per step of AdamW, falling to zero over the run.
RATE = 0.001
HELD_OUT_SHARE = 5
# Sequences whose gradients make one step: activations are kept for the backward pass.
STEP_TOKENS = 2048


@dataclass(frozen=True)
class LayerText:
    """What a layer is trained on. ``inputs``: the pruned stream before it; ``targets``: the dense
    stream after it, [n, seq, hidden] each; ``active`` [n, seq] bool, False on padding; ``held``:
    the rows that only judge."""

    inputs: States
    targets: States
    active: torch.Tensor
    held: Sequence[int]


@dataclass(frozen=True)
class Healed:
    """``tensors``: by on-disk name, in their stored shape and dtype; empty where nothing did
    better. ``before`` and ``after``: mean `relative_error` on the held-out sequences, no unit."""

    tensors: Mapping[str, torch.Tensor]
    before: float
    after: float


def held_out(counts: Sequence[int]) -> list[int]:
    """Rows that are not trained on: every fifth of each domain's ``counts`` sequences, which lie
    one domain after the other, and of a shorter domain its last."""
    rows: list[int] = []
    start = 0
    for count in counts:
        step = min(HELD_OUT_SHARE, count)
        rows += range(start + step - 1, start + count, step)
        start += count
    return rows


def relative_error(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """||h' - h'_dense||^2 / ||h'_dense||^2 of every token: [..., hidden] -> [...], float32."""
    target = target.float()
    scale = target.square().sum(dim=-1).clamp_min(1e-30)
    return (output.float() - target).square().sum(dim=-1) / scale


def heal_layer(
    model: StreamingModel,
    source: ModelSource,
    index: int,
    what: str,
    text: LayerText,
    seed: int = 0,
) -> Healed:
    """Train ``what`` (a key of HEALS) of layer ``index`` of ``source``, which ``model`` runs.

    ``model`` computes in float32. A router's selection biases are not trained. The same seed gives
    the same bytes on the same machine.
    """
    layer = model.layer(index)
    trainee = _Trainee(source, layer, index, what)
    held = text.held
    trained = [row for row in range(len(text.active)) if row not in set(held)]
    size = max(1, STEP_TOKENS // text.active.shape[1])
    steps = EPOCHS * -(-len(trained) // size)
    schedule = torch.optim.lr_scheduler.LambdaLR(trainee.optimiser, lambda step: 1 - step / steps)
    generator = torch.Generator().manual_seed(1000 * seed + index)
    before = best = _held_out_loss(model, layer, text, held, size)
    kept: Mapping[str, torch.Tensor] = {}
    for _ in range(EPOCHS):
        shuffled = torch.randperm(len(trained), generator=generator).tolist()
        order = [trained[place] for place in shuffled]
        for start in range(0, len(order), size):
            loss = _losses(model, layer, text, order[start : start + size]).mean()
            trainee.step(loss)
            schedule.step()
        with trainee.as_stored() as stored:
            held_out_loss = _held_out_loss(model, layer, text, held, size)
        if held_out_loss < best:
            best, kept = held_out_loss, stored
    return Healed(kept, before, best)


class _Trainee:
    """The tensors of one layer that are trained, by on-disk name, and their optimiser."""

    def __init__(self, source: ModelSource, layer: nn.Module, index: int, what: str) -> None:
        config, prefix = source.config, source.config.layer_prefix(index)
        self.parameters: dict[str, nn.Parameter] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        for spec in source.tensors.values():
            if spec.layer == index and spec.role in HEALS[what]:
                name = name_in_memory(config, spec).removeprefix(prefix)
                parameter = layer.get_parameter(name)
                parameter.data = parameter.data.clone()  # what was read may be somebody's
                parameter.requires_grad_(True)
                self.parameters[spec.name] = parameter
                self.dtypes[spec.name] = TORCH_DTYPES[source.dtype(spec.name)]
        # No weight decay: the weights are good already, and zero is not where they should go.
        groups = [
            {"params": [p], "lr": RATE * float(p.detach().square().mean().sqrt())}
            for p in self.parameters.values()
        ]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=0.0)

    def step(self, loss: torch.Tensor) -> None:
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()

    @contextmanager
    def as_stored(self) -> Iterator[dict[str, torch.Tensor]]:
        """The layer with its trained tensors as a checkpoint would hold them: those are yielded."""
        exact = {name: p.detach().clone() for name, p in self.parameters.items()}
        stored = {name: t.to(self.dtypes[name]) for name, t in exact.items()}
        self._set(stored)
        yield {name: tensor.cpu() for name, tensor in stored.items()}
        self._set(exact)

    def _set(self, tensors: Mapping[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            self.parameters[name].data.copy_(tensor)


def _losses(
    model: StreamingModel, layer: nn.Module, text: LayerText, rows: Sequence[int]
) -> torch.Tensor:
    """The loss of every real token of ``rows``."""
    hidden = torch.cat([text.inputs.read(row, row + 1) for row in rows]).to(model.device)
    targets = torch.cat([text.targets.read(row, row + 1) for row in rows]).to(model.device)
    output = model.forward(layer, hidden.to(model.dtype))
    return relative_error(output, targets)[text.active[rows].to(model.device)]


@torch.no_grad()
def _held_out_loss(
    model: StreamingModel, layer: nn.Module, text: LayerText, rows: Sequence[int], size: int
) -> float:
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    return float(torch.cat([_losses(model, layer, text, part) for part in parts]).double().mean())
