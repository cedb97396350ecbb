"""Neurons of a transformers model that are made to give nothing: what slicing must equal."""

from __future__ import annotations

from typing import Any

import torch

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.models import FAMILIES


def mask_cut_neurons(model: Any, plan: CompressionPlan) -> None:
    """Zero the rows, columns and biases of every neuron that ``plan`` cuts: its m is 0."""
    family = FAMILIES[plan.model_type]
    for layer, expert in plan.retained or {}:
        experts = model.model.layers[layer].mlp.experts
        cut = torch.ones(plan.full_width, dtype=torch.bool)
        cut[plan.neurons(layer, expert)] = False
        rows = cut.repeat_interleave(2) if family.gate_up_interleaved else cut.repeat(2)
        gate_up, down = experts.gate_up_proj[expert], experts.down_proj[expert]
        if down.shape[0] == plan.full_width:  # transposed
            gate_up, down = gate_up.T, down.T
        gate_up[rows] = 0
        down[:, cut] = 0
        if family.expert_bias:
            experts.gate_up_proj_bias[expert][rows] = 0
