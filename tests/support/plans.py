"""Plans made by hand, for tests of what comes after the planner."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tenp_edge.checkpoint.compression_plan import CompressionPlan, Widths
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.plan_record import PlanRecord


def plan_for(checkpoint: Checkpoint, widths: Widths, seed: int = 0) -> CompressionPlan:
    """``widths`` with randomly chosen (seeded, ascending) neurons."""
    config = checkpoint.config
    generator = torch.Generator().manual_seed(seed)
    retained = {
        (layer, expert): torch.randperm(config.moe_intermediate_size, generator=generator)[:width]
        .sort()
        .values.int()
        for layer, row in sorted(widths.items())
        for expert, width in enumerate(row)
    }
    return CompressionPlan(
        model_type=config.family.model_type,
        fingerprint=checkpoint.fingerprint,
        full_width=config.moe_intermediate_size,
        widths=widths,
        retained=retained,
        record=PlanRecord(method="given"),
    )


def cycled(checkpoint: Checkpoint, choices: Sequence[int]) -> Widths:
    """Every expert takes the next of ``choices``; the cycle runs on from layer to layer."""
    config, widths, number = checkpoint.config, {}, 0
    for layer in config.moe_layers:
        row = [choices[(number + expert) % len(choices)] for expert in range(config.num_experts)]
        widths[layer] = tuple(row)
        number += config.num_experts + 1
    return widths


def ragged_plan(checkpoint: Checkpoint, seed: int = 0) -> CompressionPlan:
    """Widths of 1/3, 2/3 and the whole, one expert after the other."""
    full = checkpoint.config.moe_intermediate_size
    return plan_for(checkpoint, cycled(checkpoint, (full // 3, 2 * full // 3, full)), seed)


def whole_plan(checkpoint: Checkpoint) -> CompressionPlan:
    """rho = 1: every neuron stays."""
    full = checkpoint.config.moe_intermediate_size
    return plan_for(checkpoint, cycled(checkpoint, (full,)))


def removal_plan(checkpoint: Checkpoint, keep: int) -> CompressionPlan:
    """The last ``keep`` experts of every layer stay whole, the others go."""
    config = checkpoint.config
    row = (0,) * (config.num_experts - keep) + (config.moe_intermediate_size,) * keep
    return plan_for(checkpoint, dict.fromkeys(config.moe_layers, row))
