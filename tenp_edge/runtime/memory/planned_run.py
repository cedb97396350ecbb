"""The run that a file was planned for, as the file says, and what follows from it for this run.

GGUF files carry it in ``tenp.run.*`` (docs/formats/gguf-per-expert.md), ONNX directories in the
section ``run`` of tenp.json. Files of other tools, and of older releases, say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.runtime.memory.footprint import KV_TYPES, PlannedRun
from tenp_edge.units import format_size

PREFIX = "tenp.run."
DEFAULT_UBATCH = 512


def planned_in_gguf(fields: Mapping[str, Any]) -> PlannedRun | None:
    """From a file's metadata; None where it does not say."""
    names = PlannedRun.__dataclass_fields__
    return _known(PlannedRun.from_json({name: fields.get(PREFIX + name) for name in names}))


def planned_in_json(facts: Mapping[str, Any]) -> PlannedRun | None:
    """From tenp.json, likewise."""
    return PlannedRun.from_json(facts.get("run"))


def _known(planned: PlannedRun | None) -> PlannedRun | None:
    return planned if planned is not None and planned.kv_type in KV_TYPES else None


def _purpose(planned: PlannedRun) -> str:
    """What it was planned for: "74.00 MiB", or the device where there was no budget."""
    return format_size(planned.ram_budget) if planned.ram_budget else planned.device


@dataclass(frozen=True)
class Chosen:
    """Context, ubatch and KV type of a run, and ``notes``: what the user should know of them."""

    context: int
    ubatch: int
    kv_type: str
    notes: tuple[str, ...] = ()


def choose_run(
    planned: PlannedRun | None,
    trained: int | None,
    context: int | None,
    ubatch: int | None,
    kv_type: str | None,
    default_context: int,
) -> Chosen:
    """What is asked for (None: nothing), else the plan's, else the defaults.

    ``trained``: tokens that the model knows. Raises UserError for a context beyond them.
    """
    if context is not None and trained is not None and context > trained:
        raise UserError(
            f"--context {context} is more than the {trained} tokens that the model knows",
            f"--context {trained}",
        )
    defaults = planned or PlannedRun(default_context, DEFAULT_UBATCH, "F16")
    max_context = defaults.context if trained is None else min(defaults.context, trained)
    chosen = Chosen(
        max_context if context is None else context,
        defaults.ubatch if ubatch is None else ubatch,
        defaults.kv_type if kv_type is None else kv_type,
    )
    if planned is None:
        return chosen
    return Chosen(chosen.context, chosen.ubatch, chosen.kv_type, _notes(planned, chosen))


def _notes(planned: PlannedRun, chosen: Chosen) -> tuple[str, ...]:
    above = [
        f"--{name} {value} (planned: {planned_value})"
        for name, value, planned_value, larger in (
            ("context", chosen.context, planned.context, chosen.context > planned.context),
            ("ubatch", chosen.ubatch, planned.ubatch, chosen.ubatch > planned.ubatch),
            ("kv-type", chosen.kv_type, planned.kv_type, _larger(chosen.kv_type, planned.kv_type)),
        )
        if larger
    ]
    run = f"context {chosen.context}, {chosen.kv_type} cache, {chosen.ubatch} prompt tokens at once"
    purpose = f" for {_purpose(planned)}" if _purpose(planned) else ""
    if above:
        return (f"warning: {', '.join(above)} takes more memory than was planned{purpose}",)
    same = (chosen.context, chosen.ubatch, chosen.kv_type) == (
        planned.context,
        planned.ubatch,
        planned.kv_type,
    )
    return (f"{run}: as planned{purpose}" if same else f"{run}; planned{purpose}",)


def _larger(one: str, other: str) -> bool:
    """Types that are not known are refused later."""
    return one in KV_TYPES and KV_TYPES[one].value_bytes > KV_TYPES[other].value_bytes
