"""The joint search under the budget: every measured type with the widths it leaves room for.

The choice itself is `jointchoice`; here its points and curves are worked out, by the exporter's own
bytes. A type costs about seven manifests; evidence, widths and predicted losses are shared by all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tenp_edge import jointchoice
from tenp_edge.allocation import Space
from tenp_edge.checkpoint import Checkpoint
from tenp_edge.evidence import Evidence
from tenp_edge.footprint import RunMemory
from tenp_edge.frontier import predicted_kl
from tenp_edge.jointchoice import Curve, Point
from tenp_edge.plan import Widths
from tenp_edge.pricing import Pricer
from tenp_edge.request import PlanRequest, Target
from tenp_edge.search import Allocator, largest_fitting
from tenp_edge.sizing import plain_allocator, shaped, whole_widths, widths_at
from tenp_edge.trials import Trial
from tenp_edge.typechoice import TypeChoice
from tenp_edge.typecosts import TypeCosts

TargetOf = Callable[[str], Target]
EvidenceAt = Callable[[Target], Evidence | None]
_PARTS = 1000  # of the neurons: how closely a type's plan is searched
_GRID = 40  # losses of other sizes are interpolated between multiples of 1/40 of the neurons


def choose_jointly(
    checkpoint: Checkpoint,
    request: PlanRequest,
    target: Target,
    target_of: TargetOf,
    evidence_at: EvidenceAt,
    costs: TypeCosts | None,
    measured: Sequence[Trial] = (),
    confirm: bool = False,
) -> TypeChoice | None:
    """The type with the least predicted KL at the budget of ``target``.

    None where types were not measured or are not to be chosen, where there are no statistics, and
    where none fits (the plain search then says what would). ``confirm``: the runtime is asked about
    the whole model in the first type; its answer serves all.
    """
    quants = jointchoice.joint_candidates(target, request, costs)
    if not quants or costs is None:
        return None
    found: list[tuple[Point, Curve]] = []
    plans: dict[Space, _Plans] = {}
    answer: RunMemory | None = None
    for quant in quants:
        evidence = evidence_at(own := target_of(quant))
        if evidence is None:
            return None
        pricer, space = Pricer(checkpoint, own, answer), evidence.space
        if space not in plans:
            first = plain_allocator(checkpoint.config, space, evidence, request, own)
            plans[space] = _Plans(first, evidence, measured)
        if confirm and answer is None:
            pricer.confirm(whole_widths(space))
            answer = pricer.answer
        fits = _fitting(pricer, plans[space], request, costs.types[quant].kl)
        found += [] if fits is None else [fits]
    if not found:
        return None
    points, curves = [point for point, _ in found], [curve for _, curve in found]
    chosen = jointchoice.best(points)
    return TypeChoice(
        chosen.quant,
        jointchoice.reason(chosen, points),
        {point.quant: point.keep_ratio for point in points},
        answer,
        points=tuple(point.to_json() for point in points),
        frontier=tuple(jointchoice.frontier_over_types(curves, target.budget_bytes)),
    )


class _Plans:
    """An allocator's plans by size; widths and predicted nats are worked out once for all types."""

    def __init__(self, allocator: Allocator, evidence: Evidence, measured: Sequence[Trial]) -> None:
        self.allocator, self.evidence, self.measured = allocator, evidence, measured
        self.total = evidence.space.total_neurons
        self._widths: dict[int, Widths] = {}
        self._kl: dict[int, float] = {}

    def widths(self, size: int) -> Widths:
        if size not in self._widths:
            self._widths[size] = widths_at(self.allocator, self.evidence.space, size)
        return self._widths[size]

    def kl(self, size: int) -> float:
        """Predicted nats per token of the plan of ``size`` neurons."""
        if size not in self._kl:
            loss = self.evidence.predicted_loss(self.widths(size))
            self._kl[size] = predicted_kl(loss, self.measured)
        return self._kl[size]

    def near_kl(self, size: int) -> float:
        """`kl`, interpolated between sizes of a grid."""
        step = max(1, self.total // _GRID)
        low = max(size // step * step, self.allocator.least_neurons)
        high = min(low + step, self.total)
        part = 0.0 if high == low else (size - low) / (high - low)
        return (1 - part) * self.kl(low) + part * self.kl(high)


def _fitting(
    pricer: Pricer, plans: _Plans, request: PlanRequest, type_kl: float
) -> tuple[Point, Curve] | None:
    """A type's largest plan within the budget, and its plans of other sizes; None: none fits."""
    found = _largest(pricer, plans)
    if found is None:
        return None
    allocator, choice = shaped(plans.allocator, plans.evidence, request, found[0])
    if choice is not None:  # a trapezoid's shape moves its legal sizes a little
        plans = _Plans(allocator, plans.evidence, plans.measured)
        found = _largest(pricer, plans, choice.near) or found
    size, priced = found
    quant, kept = pricer.target.options.quant, sum(map(sum, plans.widths(size).values()))
    point = Point(quant, kept / plans.total, priced[size], plans.kl(size), type_kl)
    return point, Curve(quant, type_kl, priced, plans.near_kl, plans.total)


def _largest(
    pricer: Pricer, plans: _Plans, near: int | None = None
) -> tuple[int, dict[int, int]] | None:
    """The size of the largest plan that fits, and total bytes by every size that was priced.

    Within a thousandth of the neurons: the chosen type's is then searched exactly.
    """
    budget, total, least = pricer.target.budget_bytes, plans.total, plans.allocator.least_neurons
    priced: dict[int, int] = {}

    def nbytes(size: int) -> int:
        if size not in priced:
            priced[size] = pricer(plans.widths(size)).memory.total_bytes
        return priced[size]

    if nbytes(least) > budget:
        return None
    if nbytes(total) <= budget:
        return total, priced
    step = plans.evidence.space.multiple
    close = max(1, total // _PARTS // step)
    return largest_fitting(least, total, step, nbytes, budget, near, close), priced
