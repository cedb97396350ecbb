"""Widths and types together: the least predicted KL among the plans that one budget allows.

For every type the largest plan that fits is priced; what its cuts cost is predicted from the
statistics (`frontier.predicted_kl`), what the type costs was measured (`typeloss`). Both errors are
small and independent, so their KL is taken as the sum.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tenp_edge.registry import Requantiser
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
        return self.pruning_kl + self.type_kl

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "kl": self.kl}


@dataclass(frozen=True)
class Curve:
    """One type's plans by size. ``priced``: (neurons, total bytes), rising; between two of them
    bytes are nearly linear. ``pruning_kl`` of a number of neurons, of ``total`` in all."""

    quant: str
    type_kl: float
    priced: Sequence[tuple[int, int]]
    pruning_kl: Callable[[int], float]
    total: int

    def within(self, budget: int) -> Point | None:
        """The largest plan that fits in ``budget`` bytes, interpolated; None where none does."""
        sizes = [nbytes for _, nbytes in self.priced]
        if budget < sizes[0]:
            return None
        if budget >= sizes[-1]:
            return self.point(*self.priced[-1])
        above = bisect_left(sizes, budget + 1)
        (low, low_bytes), (high, high_bytes) = self.priced[above - 1], self.priced[above]
        part = (budget - low_bytes) / max(high_bytes - low_bytes, 1)
        return self.point(int(low + part * (high - low)), budget)

    def point(self, neurons: int, nbytes: int) -> Point:
        """The plan of ``neurons``, which takes ``nbytes``."""
        return Point(
            self.quant, neurons / self.total, nbytes, self.pruning_kl(neurons), self.type_kl
        )


def joint_candidates(
    target: Target, request: PlanRequest, costs: TypeCosts | None
) -> tuple[str, ...]:
    """Measured types to choose from, the most precise first: those that the device runs, from the
    profile's default down. None where type or size is pinned, or other files were measured."""
    writer, options, profile = target.exporter, target.options, target.profile
    if costs is None or request.quant is not None or request.keep is not None:
        return ()
    rules = options.tensor_types
    if not isinstance(writer, Requantiser) or not costs.conditions.holds(
        writer.format, request.imatrix, rules
    ):
        return ()
    types = list(writer.measured_quants)
    if options.quant not in types:
        return ()
    return tuple(
        quant
        for quant in types[types.index(options.quant) :]
        if (writer.format != profile.format or quant in profile.tensor_types)
        and costs.kl(quant) is not None
    )


def best(points: Sequence[Point]) -> Point:
    """The least sum; of equal ones the most precise type, which comes first."""
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
