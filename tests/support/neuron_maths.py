"""What an expert computes, written down once more, and its weights as transformers keeps them."""

from __future__ import annotations

from typing import Any

import torch
from support import tiny

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import ExpertWeights
from tenp_edge.models import FAMILIES, Family


def activations(family: Family, weights: ExpertWeights, x: torch.Tensor) -> torch.Tensor:
    """m of every token of ``x`` [n, hidden] (or of one), in float64."""
    up = x @ weights.up.double().T
    if weights.gate is None:
        assert family.activation == "relu2"
        return torch.where(up > 0, up**2, 0)
    gate = x @ weights.gate.double().T
    if weights.gate_bias is not None and weights.up_bias is not None:
        gate, up = gate + weights.gate_bias.double(), up + weights.up_bias.double()
    if family.activation == "swiglu_oai":
        gate = torch.where(gate > 7, 7.0, gate)
        up = torch.where(up > 7, 7.0, torch.where(up < -7, -7.0, up))
        return (up + 1) * gate / (1 + torch.exp(-1.702 * gate))
    if family.activation == "gelu_tanh":
        inner = (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
        return gate * (1 + torch.tanh(inner)) / 2 * up
    return gate / (1 + torch.exp(-gate)) * up


def weights_in(model: Any, family: Family, layer: int, expert: int) -> ExpertWeights:
    """One expert of a transformers model: views of its stacked parameters."""
    experts = tiny.experts_of(model, layer)
    down = experts.down_proj.detach()[expert]
    if "gate" not in family.matrices:
        return ExpertWeights(None, experts.up_proj.detach()[expert], down)
    gate_up = experts.gate_up_proj.detach()[expert]
    if getattr(experts, "is_transposed", False) or family.gate_up_interleaved:
        gate_up, down = gate_up.T, down.T
    found = ExpertWeights(*_halves(family, gate_up), down)
    if not family.expert_bias:
        return found
    bias = experts.gate_up_proj_bias.detach()[expert]
    down_bias = experts.down_proj_bias.detach()[expert]
    return ExpertWeights(found.gate, found.up, down, *_halves(family, bias), down_bias)


def _halves(family: Family, both: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    gate, up = (both[::2], both[1::2]) if family.gate_up_interleaved else both.chunk(2)
    return gate, up


def mask_cut_neurons(model: Any, plan: CompressionPlan) -> None:
    """Zero the rows, columns and biases of every neuron that ``plan`` cuts: its m is 0."""
    family = FAMILIES[plan.model_type]
    for layer, expert in plan.retained or {}:
        cut = torch.ones(plan.full_width, dtype=torch.bool)
        cut[plan.neurons(layer, expert)] = False
        weights = weights_in(model, family, layer, expert)
        for rows in (weights.gate, weights.up, weights.gate_bias, weights.up_bias):
            if rows is not None:
                rows[cut] = 0
        weights.down[:, cut] = 0
