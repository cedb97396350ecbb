"""The joint search under the budget: every measured type with the widths it leaves room for.

The choice itself is `jointchoice`; here its points and curves are worked out, by the exporter's own
bytes. A type costs one search, about a dozen manifests; the evidence is shared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from tenp_edge import jointchoice
from tenp_edge.checkpoint import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.evidence import Evidence
from tenp_edge.footprint import RunMemory
from tenp_edge.frontier import Measured, predicted_kl
from tenp_edge.jointchoice import Curve, Point
from tenp_edge.pricing import Pricer
from tenp_edge.request import PlanRequest, Target
from tenp_edge.search import Allocator
from tenp_edge.sizing import make_allocator, neurons_within, whole_widths, widths_at
from tenp_edge.typechoice import TypeChoice
from tenp_edge.typecosts import TypeCosts

TargetOf = Callable[[str], Target]
EvidenceAt = Callable[[Target], Evidence | None]
_BETWEEN = (0.25, 0.5, 0.75, 0.9)  # sizes priced besides the smallest, the fitting and the whole
_GRID = 200  # a curve's losses are worked out at multiples of 1/200 of the neurons


def choose_jointly(
    checkpoint: Checkpoint,
    request: PlanRequest,
    target: Target,
    target_of: TargetOf,
    evidence_at: EvidenceAt,
    costs: TypeCosts | None,
    measured: Measured = (),
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
    answer: RunMemory | None = None
    for quant in quants:
        evidence = evidence_at(own := target_of(quant))
        if evidence is None:
            return None
        pricer = Pricer(checkpoint, own, answer)
        if confirm and answer is None:
            pricer.confirm(whole_widths(evidence.space))
            answer = pricer.answer
        fits = _fitting(pricer, evidence, request, costs.types[quant].kl, measured)
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


def _fitting(
    pricer: Pricer, evidence: Evidence, request: PlanRequest, type_kl: float, measured: Measured
) -> tuple[Point, Curve] | None:
    """A type's largest plan within the budget, and its plans of other sizes; None: none fits."""
    space, quant = evidence.space, pricer.target.options.quant
    try:
        allocator, choice = make_allocator(
            pricer.checkpoint.config, space, evidence, request, pricer
        )
        near = None if choice is None else choice.near
        neurons = neurons_within(allocator, space, request, pricer, near)
    except UserError:  # not even the smallest plan fits
        return None
    total, least = space.total_neurons, allocator.least_neurons
    sizes = {least, neurons, total, *(n for b in _BETWEEN if (n := int(b * total)) > least)}

    def nbytes(size: int) -> int:
        return pricer(widths_at(allocator, space, size)).memory.total_bytes

    pruning_kl = _pruning_kl(allocator, evidence, measured)
    priced = [(size, nbytes(size)) for size in sorted(sizes)]
    curve = Curve(quant, type_kl, priced, pruning_kl, total)
    return curve.point(neurons, nbytes(neurons)), curve


def _pruning_kl(
    allocator: Allocator, evidence: Evidence, measured: Measured
) -> Callable[[int], float]:
    """Predicted nats of the allocator's plan of so many neurons, at the grid's next size below."""
    space = evidence.space
    step = max(1, space.total_neurons // _GRID)

    @cache
    def at(neurons: int) -> float:
        widths = widths_at(allocator, space, neurons)
        return predicted_kl(evidence.predicted_loss(widths), measured)

    def found(neurons: int) -> float:
        whole = neurons >= space.total_neurons
        return at(neurons if whole else max(neurons // step * step, allocator.least_neurons))

    return found
