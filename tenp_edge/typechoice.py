"""Which tensor type a plan takes when only the memory is given and no type was measured.

The rule: the most precise of the format's automatic types at which enough of the neurons stay
(85 %, 65 % for method adaptive, whose cuts cost less); where there is none, the least precise of
them, pruned. A few neurons cost less than bits, many cost more (docs/results.md has the measured
tables). It knows nothing of the model at hand; `jointchoice`
does, once `calibrate --types` was run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tenp_edge.allocation import Space, uniform
from tenp_edge.checkpoint import Checkpoint
from tenp_edge.footprint import RunMemory
from tenp_edge.pricing import Pricer
from tenp_edge.registry import Requantiser
from tenp_edge.request import PlanRequest, Target

ENOUGH = {"adaptive": 0.65}
ENOUGH_ELSE = 0.85
MEASURE_HINT = (
    "the type was chosen by a rule; `tenp-edge calibrate MODEL --types -o WORK` measures what each "
    "type costs, plan --calibration WORK then weighs types against neurons"
)


def enough(method: str) -> float:
    """The share of the neurons that must stay for a more precise type to be taken."""
    return ENOUGH.get(method, ENOUGH_ELSE)


@dataclass(frozen=True)
class TypeChoice:
    """``quant`` and why; ``kept``: about which share of the neurons each candidate could keep.
    ``answer``: what the runtime said about the whole model, if it was asked. ``points`` and
    ``frontier``: where types were measured, every type at the budget and the best one at others
    (`jointchoice`), as JSON values. ``note``: how to choose better."""

    quant: str
    reason: str
    kept: dict[str, float]
    answer: RunMemory | None = None
    points: tuple[dict[str, Any], ...] = ()
    frontier: tuple[dict[str, Any], ...] = ()
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        found = {"quant": self.quant, "reason": self.reason, "kept": self.kept}
        if not self.points:
            return found | {"by": "rule", "note": self.note}
        return found | {
            "by": "measured loss",
            "types": list(self.points),
            "frontier": list(self.frontier),
        }


def candidates(target: Target, request: PlanRequest) -> tuple[str, ...]:
    """Types to choose from: the format's automatic ones that the device runs, from the profile's
    default down. None where the user pinned the type or the size."""
    profile, exporter = target.profile, target.exporter
    if request.quant is not None or request.keep is not None:
        return ()
    allowed = exporter.format != profile.format or profile.tensor_types
    types = [q for q in exporter.automatic_quants if allowed is True or q in allowed]
    default = target.options.quant
    return tuple(types[types.index(default) :]) if default in types else ()


def choose_type(
    checkpoint: Checkpoint,
    space: Space,
    types: tuple[str, ...],
    target_of: Callable[[str], Target],
    confirm: bool,
    least: float = ENOUGH_ELSE,
) -> TypeChoice:
    """The rule above, for ``types``, the most precise first.

    ``confirm``: the runtime is asked about the whole model in the first; its answer serves all.
    """
    whole = dict.fromkeys(space.layers, (space.full,) * space.experts)
    half = uniform(space, space.total_neurons // 2)
    halved = sum(map(sum, half.values())) / space.total_neurons
    kept: dict[str, float] = {}
    answer: RunMemory | None = None
    note: str | None = None
    for quant in types:
        pricer = Pricer(checkpoint, target_of(quant), answer)
        priced = pricer.confirm(whole) if confirm and answer is None else pricer(whole)
        answer = pricer.answer
        note = MEASURE_HINT if isinstance(pricer.target.exporter, Requantiser) else None
        budget, full = pricer.target.budget_bytes, priced.memory.total_bytes
        weights = priced.memory.weights_bytes - pricer(half).memory.weights_bytes
        per_share = weights / (1 - halved)  # Buffers hardly shrink: the widest experts stay.
        kept[quant] = min(1.0, max(0.0, 1 - (full - budget) / per_share))
        if kept[quant] >= least:
            reason = f"the most precise type that keeps {least:.0%} of the neurons or more"
            return TypeChoice(quant, reason, kept, answer, note=note)
    reason = f"no type keeps {least:.0%} of the neurons, {types[-1]} the most"
    return TypeChoice(types[-1], reason, kept, answer, note=note)
