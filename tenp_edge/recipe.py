"""What a plan says about itself: how it was made and what it predicts, as JSON values."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from tenp_edge.checkpoint import Checkpoint
from tenp_edge.evidence import Evidence
from tenp_edge.kinds import is_one_kind
from tenp_edge.memory import decode_tokens_per_second
from tenp_edge.models import ModelConfig, expected_tensors
from tenp_edge.plan import Widths
from tenp_edge.pricing import Priced
from tenp_edge.request import PlanRequest, Target, method_of
from tenp_edge.search import Allocator, Choice, Tenp


def memory_json(priced: Priced, target: Target, evidence: Evidence | None) -> dict[str, Any]:
    return {
        **priced.memory.to_json(),
        "device": target.profile.name,
        "context": target.run.context,
        "kv_type": target.run.kv_type,
        "ubatch": target.run.ubatch,
        "tokens_per_second": round(_speed(priced, target, evidence), 2),
    }


def _speed(priced: Priced, target: Target, evidence: Evidence | None) -> float:
    """Decode speed, with the routed experts weighted by use where the statistics say so.

    Fixed shapes compute all of them.
    """
    if target.options.layout in target.exporter.fixed_layouts:
        every = priced.config.num_experts / priced.config.num_experts_per_tok
        return decode_tokens_per_second(
            priced.config, priced.manifest, target.profile, target.run, every
        )
    active = None if evidence is None else evidence.active_ratio(priced.widths)
    relative = 1.0
    if active is not None and not priced.config.is_uniform:
        relative = active / priced.keep_ratio
    return decode_tokens_per_second(
        priced.config, priced.manifest, target.profile, target.run, relative
    )


def make_recipe(
    checkpoint: Checkpoint,
    priced: Priced,
    target: Target,
    request: PlanRequest,
    allocator: Allocator,
    evidence: Evidence | None,
    choice: Choice | None,
) -> dict[str, Any]:
    """How the plan was made and what it predicts, as JSON values."""
    widths, keep = priced.widths, priced.keep_ratio
    method = method_of(request, target)
    recipe: dict[str, Any] = {
        "method": request.method,
        "allocation": _ALLOCATIONS[method],
        "keep_ratio_target": keep if request.keep is None else request.keep,
        "keep_ratio": keep,
        "fits_whole": keep == 1.0,
        "budget_bytes": target.budget_bytes if request.keep is None else request.budget_bytes,
        "width_multiple": target.width_multiple,
        "format": target.exporter.format,
        "layout": priced.manifest.layout,
        "quant": target.options.quant,
        "imatrix": target.options.imatrix,
        "tensor_types": list(target.options.tensor_types),
        "shard_bytes": target.options.shard_bytes,
        "latent_cache": target.options.latent_cache,
        "lengths": None if target.options.lengths is None else asdict(target.options.lengths),
        "targets": list(target.options.targets),
        "expert_score": request.expert_score if evidence else None,
        "neuron_score": evidence.scores.neuron if evidence else None,
        "seed": request.seed,
        "layer_retention": {
            str(la): sum(row) / (len(row) * priced.full_width) for la, row in widths.items()
        },
        "model_retention": _parameters(priced.config) / _parameters(checkpoint.config),
    }
    if isinstance(allocator, Tenp) and keep < 1:
        recipe |= _trapezoid_recipe(allocator, widths, request, choice)
    if evidence is not None:
        recipe |= {
            "active_ratio": evidence.active_ratio(widths),
            "predicted_loss": evidence.predicted_loss(widths),
            "unreached": [list(key) for key in evidence.unreached],
        }
    return recipe | {"notes": _notes(priced, target, request, evidence)}


_ALLOCATIONS = {
    "tenp": "trapezoid",
    "enp": "uniform",
    "drop": "removal",
    "free": "free",
    "adaptive": "free",
}


def _trapezoid_recipe(
    allocator: Tenp, widths: Widths, request: PlanRequest, choice: Choice | None
) -> dict[str, Any]:
    """alpha, beta and the shape, as they really are in ``widths``."""
    full = allocator.space.full
    whole = [sum(w == full for w in row) for row in widths.values()]
    narrow = min(min(row) for row in widths.values())
    shape = allocator.shape
    pinned = [
        name
        for name in ("whole_share", "shallow", "deep", "middle")
        if getattr(request, name) is not None
    ]
    return {
        "whole_share": sum(whole) / allocator.space.total_experts,
        "whole_experts": whole,
        "narrow_width": narrow,
        "beta": narrow / full,
        "shallow": shape.shallow,
        "deep": shape.deep,
        "middle": shape.middle,
        "slope": shape.deep - shape.shallow,
        "pinned": pinned,
        "chosen_by": "bytes with the paper's shape" if choice is None else "predicted loss",
    }


def _notes(
    priced: Priced, target: Target, request: PlanRequest, evidence: Evidence | None
) -> list[str]:
    """What a reader of the plan should know, in sentences."""
    notes = list(priced.manifest.notes)
    if request.context is None and target.run.context < target.profile.context:
        notes.append(
            f"planned for a context of {target.run.context}: the model knows no more "
            f"({target.profile.name} would take {target.profile.context})"
        )
    if priced.keep_ratio == 1.0:
        notes.append("the full model fits: nothing is cut")
    elif evidence is None and request.method != "enp":
        notes.append(
            "planned by bytes alone, without calibration: the first experts of a layer stand for "
            "the best ones"
        )
    if method_of(request, target) != request.method:
        notes.append("the merged layout takes one width for all experts: uniform allocation")
    if evidence is not None and evidence.unreached:
        notes.append(
            f"no calibration token reached {len(evidence.unreached)} experts: they are ranked "
            "last and keep their neurons of the largest norm"
        )
    if evidence is not None and priced.keep_ratio < 1 and is_one_kind(evidence.statistics):
        notes.append(
            "the calibration saw one kind of text: the plan is for that kind. --protect much keeps "
            "more for others, at the cost of this one"
        )
    return notes


def _parameters(config: ModelConfig) -> int:
    return sum(math.prod(spec.shape) for spec in expected_tensors(config))
