"""Widths and types together: the least predicted KL among the plans that one budget allows.

For every type the largest plan that fits is priced; what its cuts cost is predicted from the
statistics (`frontier.predicted_kl`), what the type costs was measured (`typeloss`). The two errors
are independent: `frontier.together_kl`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tenp_edge.frontier import together_kl
from tenp_edge.registry import measured_quants
from tenp_edge.request import PlanRequest, Target
from tenp_edge.typecosts import TypeCosts

# RAM numbers around the one asked for, at which the frontier shows the best type.
SHARES = (0.6, 0.75, 0.9, 1.0, 1.25)


@dataclass(frozen=True)
class Point:
    """A type with the largest plan that fits: share of the neurons, predicted peak bytes, and
    nats per token of the cuts (predicted) and of the type (measured)."""

    quant: str
    keep_ratio: float
    total_bytes: int
    pruning_kl: float
    type_kl: float

    @property
    def kl(self) -> float:
        return together_kl(self.pruning_kl, self.type_kl)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kl": self.kl}


@dataclass(frozen=True)
class Curve:
    """One type's plans by size. ``priced``: total bytes by neurons; between two of them bytes are
    nearly linear. ``pruning_kl`` of a number of neurons, of ``total`` in all."""

    quant: str
    type_kl: float
    priced: Mapping[int, int]
    pruning_kl: Callable[[int], float]
    total: int

    def size_within(self, budget: int) -> int | None:
        """Neurons of the largest plan in ``budget`` bytes, interpolated; None where none fits."""
        fitting = [size for size, nbytes in self.priced.items() if nbytes <= budget]
        above = [size for size, nbytes in self.priced.items() if nbytes > budget]
        if not fitting or not above:
            return max(fitting, default=None)
        low, high = max(fitting), min(above)
        low_bytes, high_bytes = self.priced[low], self.priced[high]
        return low + (budget - low_bytes) * (high - low) // (high_bytes - low_bytes)

    def within(self, budget: int) -> Point | None:
        """The largest plan in ``budget`` bytes; None where none fits."""
        size = self.size_within(budget)
        if size is None:
            return None
        nbytes = self.priced.get(size, budget)
        return Point(self.quant, size / self.total, nbytes, self.pruning_kl(size), self.type_kl)


def measurable(target: Target, request: PlanRequest) -> tuple[str, ...]:
    """Types to choose from once they are measured, the most precise first: those that the device
    runs, from the profile's default down. None where the user pinned the type or the size."""
    writer, profile = target.exporter, target.profile
    types = list(measured_quants(writer))
    pinned = request.quant is not None or request.keep is not None
    if pinned or target.options.quant not in types:
        return ()
    runs = types if writer.format != profile.format else profile.tensor_types
    return tuple(q for q in types[types.index(target.options.quant) :] if q in runs)


def joint_candidates(
    target: Target, request: PlanRequest, costs: TypeCosts | None
) -> tuple[str, ...]:
    """Those that were measured, for files like the one asked for."""
    rules = target.options.tensor_types
    if costs is None or not costs.conditions.holds(target.exporter.format, request.imatrix, rules):
        return ()
    return tuple(quant for quant in measurable(target, request) if quant in costs.types)


def best(points: Sequence[Point]) -> Point:
    """The least loss; of equal ones the most precise type, which comes first."""
    return min(points, key=lambda point: point.kl)


def frontier_over_types(curves: Sequence[Curve], budget: int) -> list[dict[str, Any]]:
    """The best (type, size) at SHARES of ``budget``, as JSON values; no row where nothing fits."""
    rows = []
    for share in SHARES:
        size = round(share * budget)
        found = [point for curve in curves if (point := curve.within(size)) is not None]
        if found:
            rows.append({"share": share, "budget_bytes": size, **best(found).to_json()})
    return rows


def reason(chosen: Point, points: Sequence[Point]) -> str:
    """Why this one, in words with its numbers."""
    others = [point for point in points if point is not chosen]
    said = (
        f"the least predicted loss with {chosen.keep_ratio:.0%} of the neurons: "
        f"{chosen.pruning_kl:.2g} nats by pruning and {chosen.type_kl:.2g} by the type"
    )
    if not others:
        return said
    second = best(others)
    return f"{said}; next is {second.quant} with {second.keep_ratio:.0%}: {second.kl:.2g}"
