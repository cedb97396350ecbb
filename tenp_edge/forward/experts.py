"""Routed experts of any width: what takes the place of transformers' `mlp.experts`.

transformers stacks a layer's experts into one tensor, which needs them equal. Here every expert is
a module of its own, named as on disk (`experts.{e}.gate_proj.weight`), so a pruned model's state
dict is its checkpoint. In all supported families the experts are called with the hidden states
after the block's norm, the chosen experts and the weights that really multiply their outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import gelu, linear, pad, relu, silu

from tenp_edge.checkpoint.files import ExpertWeights
from tenp_edge.forward.scratch import Scratch
from tenp_edge.models.family import Activation, Family

# oneDNN compiles a kernel for every new shape of a bf16 or f16 product; groups of tokens are padded
# to this multiple so that shapes repeat (10-20 times faster on two cores).
GROUP_MULTIPLE = 64
_NORM_ROWS = 128
_STEP = 2**-6  # of `slopes`


class Observer(Protocol):
    """Sees what each expert received and returned, one expert at a time, then the whole layer."""

    def expert(self, group: ExpertGroup) -> None: ...

    def routed(self, chosen: torch.Tensor, output: torch.Tensor) -> None:
        """``chosen`` [tokens, top_k] expert numbers (E where skipped); ``output`` their weighted
        sum, float32 [tokens, hidden]."""
        ...


class ExpertGroup:
    """The tokens one expert received: rows (token numbers) and slots (which of the top-k).

    x, y: [n, hidden]; m: [n, width]; g: [n]; ``down``: the expert's W_down, (hidden, width). y is
    what the neurons give, W_down m: a bias of the expert's output is no neuron's and not in it.
    """

    def __init__(
        self,
        expert: int,
        rows: torch.Tensor,
        slots: torch.Tensor,
        x: torch.Tensor,
        m: torch.Tensor,
        y: torch.Tensor,
        g: torch.Tensor,
        down: torch.Tensor,
    ) -> None:
        self.expert, self.rows, self.slots = expert, rows, slots
        self.padded_m, self.padded_y, self.down = m, y, down
        count = len(rows)
        self.x, self.m, self.y, self.g = x[:count], m[:count], y[:count], g

    def projected(self) -> torch.Tensor:
        """y W_down, [n, width]: each neuron's output direction against the expert's output."""
        return (self.padded_y @ self.down)[: len(self.rows)]


class RaggedExpert(nn.Module):
    """One expert: y = W_down m + its bias (see `neurons`), under its on-disk names."""

    def __init__(self, weights: ExpertWeights, family: Family) -> None:
        super().__init__()
        self.names, self.activation = family.projections, family.activation
        self.roles = family.matrices
        for name, role in zip(self.names, self.roles, strict=True):
            matrix, bias = getattr(weights, role), getattr(weights, f"{role}_bias")
            rows, columns = matrix.shape
            with torch.device("meta"):  # torch warns of making a matrix of no size
                module = nn.Linear(max(columns, 1), max(rows, 1), bias=bias is not None)
            module.in_features, module.out_features = columns, rows
            module.weight = nn.Parameter(matrix, requires_grad=False)
            if bias is not None:
                module.bias = nn.Parameter(bias, requires_grad=False)
            self.add_module(name, module)

    def weight(self, role: str) -> torch.Tensor:
        """W_gate (if there is one), W_up or W_down, by its name in `ExpertWeights`."""
        return self._linear(role).weight

    def matrices(self, dtype: torch.dtype, scratch: Scratch | None = None) -> ExpertWeights:
        """The weights in ``dtype``; converted here where they are kept in a smaller one.
        ``scratch``: where to, for who is done with one expert before the next."""
        modules = {role: self._linear(role) for role in self.roles}
        biased = {f"{role}_bias": m.bias for role, m in modules.items() if m.bias is not None}
        stored = {role: module.weight for role, module in modules.items()} | biased
        if scratch is None:
            return ExpertWeights.of({name: tensor.to(dtype) for name, tensor in stored.items()})
        return ExpertWeights.of({n: scratch.cast(n, t, dtype) for n, t in stored.items()})

    def _linear(self, role: str) -> nn.Linear:
        module = self.get_submodule(self.names[self.roles.index(role)])
        assert isinstance(module, nn.Linear)
        return module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.matrices(x.dtype)
        return linear(neurons(weights, x, self.activation), weights.down, weights.down_bias)


def _swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return silu(gate) * up


def _geglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return gelu(gate, approximate="tanh") * up


def _swiglu_oai(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """gpt-oss': (u + 1) g sigmoid(1.702 g), g = min(gate, 7), u = up within -7 and 7."""
    gate, up = gate.clamp(max=7.0), up.clamp(min=-7.0, max=7.0)
    return (up + 1) * (gate * torch.sigmoid(gate * 1.702))


def _relu2(up: torch.Tensor) -> torch.Tensor:
    return relu(up).square()


# As transformers computes them: of gate and up, and of up where there is no gate.
_UNGATED: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {"relu2": _relu2}
_ACTIVATIONS: dict[Activation, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "silu": _swiglu,
    "gelu_tanh": _geglu,
    "swiglu_oai": _swiglu_oai,
}


def neurons(
    weights: ExpertWeights, x: torch.Tensor, activation: Activation = "silu"
) -> torch.Tensor:
    """m = act(x W_gate^T + b_gate, x W_up^T + b_up), [n, width], from x, [n, hidden];
    without a gate m = act(x W_up^T + b_up)."""
    up = linear(x, weights.up, weights.up_bias)
    if weights.gate is None:
        return _UNGATED[activation](up)
    return _ACTIVATIONS[activation](linear(x, weights.gate, weights.gate_bias), up)


def slopes(
    weights: ExpertWeights, x: torch.Tensor, activation: Activation = "silu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """dm/da and dm/du of m = act(a, u), float32 [n, width] each, at the inputs x, [n, hidden].

    By differences, so that they are those of any activation. Without a gate its slope is 0.
    """
    up = linear(x, weights.up, weights.up_bias).float()
    if weights.gate is None:
        alone = _UNGATED[activation]
        by_up = alone(up + _STEP) - alone(up - _STEP)
        return torch.zeros_like(up), by_up / (2 * _STEP)
    gate = linear(x, weights.gate, weights.gate_bias).float()
    act = _ACTIVATIONS[activation]
    by_gate = act(gate + _STEP, up) - act(gate - _STEP, up)
    by_up = act(gate, up + _STEP) - act(gate, up - _STEP)
    return by_gate / (2 * _STEP), by_up / (2 * _STEP)


class RaggedExperts(nn.Module):
    """A layer's experts. ``observer`` sees every group; tokens outside ``active`` are skipped."""

    def __init__(self, experts: Sequence[ExpertWeights], family: Family) -> None:
        super().__init__()
        self.family = family
        for number, weights in enumerate(experts):
            self.add_module(str(number), RaggedExpert(weights, family))
        self.num_experts = len(experts)
        self.observer: Observer | None = None
        self._scratch = Scratch()
        self.active: torch.Tensor | None = None  # [tokens] bool; None is all
        # What an expert adds to every output of its own, by expert: [hidden]. No format stores
        # it; methods that compensate for what they cut are measured with it.
        self.offsets: Mapping[int, torch.Tensor] = {}

    def __getitem__(self, expert: int) -> RaggedExpert:
        module = self.get_submodule(str(expert))
        assert isinstance(module, RaggedExpert)
        return module

    def __len__(self) -> int:
        return self.num_experts

    def computed(self, expert: int, dtype: torch.dtype) -> ExpertWeights:
        """The weights of ``expert`` in ``dtype``, until those of another are asked for."""
        # A backward pass reads all of them again.
        return self[expert].matrices(dtype, None if torch.is_grad_enabled() else self._scratch)

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """(tokens, hidden), (tokens, top_k), (tokens, top_k) -> (tokens, hidden)."""
        chosen = top_k_index
        if self.active is not None:
            chosen = chosen.masked_fill(~self.active[:, None], self.num_experts)
        # The weighted sum grows in float32: top-k roundings to bf16 would be the larger error.
        output = torch.zeros_like(hidden_states, dtype=torch.float32)
        for expert, rows, slots in group_by_expert(chosen, self.num_experts):
            g = top_k_weights[rows, slots].float()
            y = self._output(expert, rows, slots, hidden_states, g)
            output.index_add_(0, rows, y * g[:, None])
        if self.observer is not None:
            self.observer.routed(chosen, output)
        return output.to(hidden_states.dtype)

    def _output(
        self,
        expert: int,
        rows: torch.Tensor,
        slots: torch.Tensor,
        hidden_states: torch.Tensor,
        g: torch.Tensor,
    ) -> torch.Tensor:
        """What one expert makes of its tokens, float32 [n, hidden]; shown to the observer."""
        weights = self.computed(expert, hidden_states.dtype)
        x = pad_group(hidden_states.index_select(0, rows))
        m = neurons(weights, x, self.family.activation)
        y = linear(m, weights.down)
        if expert in self.offsets:
            y = y + self.offsets[expert].to(y)
        if self.observer is not None:
            self.observer.expert(ExpertGroup(expert, rows, slots, x, m, y, g, weights.down))
        whole = y if weights.down_bias is None else y + weights.down_bias
        return whole[: len(rows)].float()


def routed_experts(layer: nn.Module) -> RaggedExperts:
    """Those of a decoder layer that has some."""
    (experts,) = (module for module in layer.modules() if isinstance(module, RaggedExperts))
    return experts


def set_experts(layer: nn.Module, family: Family, experts: RaggedExperts) -> None:
    """Put ``experts`` in the place of transformers' own."""
    parent, _, name = family.experts_in_memory.rpartition(".")
    setattr(layer.get_submodule(parent), name, experts)


def weight_norms(experts: RaggedExperts) -> dict[str, torch.Tensor]:
    """Row norms of gate (if any) and up, column norms of down: float64 [experts, width] each."""
    width, roles = experts[0].weight("up").shape[0], experts.family.matrices
    squares = {role: torch.zeros(len(experts), width, dtype=torch.float64) for role in roles}
    for expert in range(len(experts)):
        for role in roles:
            # A few rows at a time: whole float32 copies left the heap full of holes (1 GiB).
            for rows, block in enumerate(torch.split(experts[expert].weight(role), _NORM_ROWS)):
                part = block.float().square().sum(dim=0 if role == "down" else 1).cpu()
                start = 0 if role == "down" else rows * _NORM_ROWS
                squares[role][expert, start : start + len(part)] += part
    return {f"{role}_norm": square.sqrt() for role, square in squares.items()}


class ReadExperts(RaggedExperts):
    """Experts that are read when their turn comes and then forgotten: for weights whose decoded
    form is several times the stored one."""

    def __init__(self, read: Callable[[int], ExpertWeights], count: int, family: Family) -> None:
        super().__init__((), family)
        self._read, self.num_experts = read, count

    def __getitem__(self, expert: int) -> RaggedExpert:
        return RaggedExpert(self._read(expert), self.family)


def group_by_expert(
    chosen: torch.Tensor, experts: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(expert, rows, slots) for every expert that some token chose; numbers >= experts skipped.

    chosen: [tokens, top_k]; rows ascend within a group, so sums have one order.
    """
    top_k = chosen.shape[1]
    flat = chosen.reshape(-1)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=experts)[:experts].tolist()
    start = 0
    for expert, count in enumerate(counts):
        if count:
            places = order[start : start + count]
            yield expert, places // top_k, places % top_k
        start += count


def pad_group(x: torch.Tensor) -> torch.Tensor:
    """``x`` with rows of zeros up to a multiple of GROUP_MULTIPLE where that is faster."""
    short = -len(x) % GROUP_MULTIPLE
    if x.dtype == torch.float32 or x.device.type != "cpu" or short == 0 or len(x) == 1:
        return x
    return pad(x, (0, 0, 0, short))
