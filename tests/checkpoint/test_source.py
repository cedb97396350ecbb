"""The pruned model as weights: which tensors hold other numbers than the checkpoint's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from support.plans import cycled, plan_for, removal_plan

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource

ROUTER = "model.layers.0.mlp.gate.weight"


def test_a_router_changes_where_experts_are_removed(checkpoint_of: Callable[[str], Path]) -> None:
    """And not where experts without neurons keep their rows of it."""
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    full = checkpoint.config.moe_intermediate_size
    emptied = replace(plan_for(checkpoint, cycled(checkpoint, (0, full))), keeps_places=True)
    assert ModelSource(checkpoint, removal_plan(checkpoint, 5)).changes(ROUTER)
    assert not ModelSource(checkpoint, emptied).changes(ROUTER)
    assert not ModelSource(checkpoint).changes(ROUTER)
