"""Which tensor type a plan takes when only the memory is given.

Where types were measured (`calibrate --types`): the least predicted KL among the plans that the
budget allows. For every type the largest plan that fits is priced by the exporter's own bytes; what
its cuts cost is predicted from the statistics, what the type costs was measured
(`type_sensitivity`). The two errors are independent: `kl_law.together_kl`.

Where they were not, a rule: the most precise of the format's automatic types at which enough of the
neurons stay (`methods.Method.enough`); where there is none, the least precise of them, pruned. A
few neurons cost less than bits, many cost more (docs/results.md has the measured tables).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.exporters.base import Requantiser, measured_quants
from tenp_edge.exporters.mixing import Mixer
from tenp_edge.planning.budget.allocation import uniform
from tenp_edge.planning.budget.search import Search, whole_widths
from tenp_edge.planning.measured.kl_law import together_kl
from tenp_edge.planning.measured.rounding_errors import FIRST_FORMAT
from tenp_edge.planning.measured.trials import Trial
from tenp_edge.planning.measured.type_costs import TypeCosts
from tenp_edge.planning.memory.pricing import Pricer
from tenp_edge.planning.options.target import PlanSpec, Target
from tenp_edge.planning.scores.tables import Evidence
from tenp_edge.planning.space import Space
from tenp_edge.runtime.memory.footprint import RunMemory
from tenp_edge.units import percent

EvidenceOf = Callable[[PlanSpec], Evidence | None]
MEASURE_HINT = (
    "the type was chosen by a rule; `tenp-edge calibrate MODEL --types -o WORK` measures what each "
    "type costs, plan --calibration WORK then weighs types against neurons"
)
# RAM numbers around the one asked for, at which the frontier shows the best type.
SHARES = (0.6, 0.75, 0.9, 1.0, 1.25)
_PARTS = 1000  # of the neurons: how closely a type's plan is searched


@dataclass(frozen=True)
class TypeChoice:
    """``quant`` and why; ``kept``: about which share of the neurons each candidate could keep.
    ``answer``: what the runtime said about the whole model, if it was asked. ``points`` and
    ``frontier``: where types were measured, every type at the budget and the best one at others
    (`choose_jointly`), as JSON values. ``note``: how to choose better."""

    quant: str
    reason: str
    kept: dict[str, float]
    answer: RunMemory | None = None
    points: tuple[dict[str, Any], ...] = ()
    frontier: tuple[dict[str, Any], ...] = ()
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        row = {"quant": self.quant, "reason": self.reason, "kept": self.kept}
        if not self.points:
            return row | {"by": "rule", "note": self.note}
        return row | {
            "by": "measured loss",
            "types": list(self.points),
            "frontier": list(self.frontier),
        }


# -- by a rule -------------------------------------------------------------------------------------


def choose_by_rule(
    checkpoint: Checkpoint, spec: PlanSpec, space: Space, confirm: bool
) -> TypeChoice | None:
    """The rule above; None where no type is to be chosen.

    ``confirm``: the runtime is asked about the whole model in the first; its answer serves all.
    """
    types, min_kept = spec.choosable(spec.target.exporter.automatic_quants), spec.method.enough
    if not types:
        return None
    whole = whole_widths(space)
    half = uniform(space, space.total_neurons // 2)
    halved = sum(map(sum, half.values())) / space.total_neurons
    kept: dict[str, float] = {}
    answer: RunMemory | None = None
    note: str | None = None
    wanted = percent(min_kept, 0)
    for quant in types:
        pricer = Pricer(checkpoint, spec.with_type(quant).target, answer)
        priced = pricer.confirm(whole) if confirm and answer is None else pricer(whole)
        answer = pricer.answer
        note = _hint(pricer.target)
        budget, full = pricer.target.budget_bytes, priced.memory.total_bytes
        weights = priced.memory.weights_bytes - pricer(half).memory.weights_bytes
        # Buffers hardly shrink: the widest experts stay. No share where there is one width alone.
        per_share = weights / (1 - halved) if halved < 1 else 0.0
        share = 1 - (full - budget) / per_share if per_share else float(full <= budget)
        kept[quant] = min(1.0, max(0.0, share))
        if kept[quant] >= min_kept:
            reason = f"the most precise type that keeps {wanted} of the neurons or more"
            return TypeChoice(quant, reason, kept, answer, note=note)
    reason = f"no type keeps {wanted} of the neurons, {types[-1]} the most"
    return TypeChoice(types[-1], reason, kept, answer, note=note)


def _hint(target: Target) -> str | None:
    """How to choose better, where what the types do can be measured."""
    writer = target.exporter
    mixes = not isinstance(writer, Mixer) or writer.rules(target.options.layout or "").mixes
    if not isinstance(writer, Requantiser) or not mixes:
        return None
    if writer.format == FIRST_FORMAT:
        return MEASURE_HINT
    return MEASURE_HINT.replace("--types", f"--types --format {writer.format}")


# -- by what was measured --------------------------------------------------------------------------


def measurable(spec: PlanSpec) -> tuple[str, ...]:
    """Types to choose from once they are measured, the most precise first."""
    return spec.choosable(measured_quants(spec.target.exporter))


def applies(costs: TypeCosts, spec: PlanSpec) -> bool:
    """Whether files like the one asked for were measured."""
    options = spec.options
    return costs.conditions.holds(
        spec.target.exporter.format, options.imatrix, options.tensor_types
    )


def choose_jointly(
    checkpoint: Checkpoint,
    spec: PlanSpec,
    evidence_of: EvidenceOf,
    costs: TypeCosts | None,
    measured: Sequence[Trial] = (),
    confirm: bool = False,
) -> TypeChoice | None:
    """The type with the least predicted KL at the budget of ``spec``.

    None where types were not measured or are not to be chosen, where there are no statistics, and
    where none fits (the plain search then says what would). ``confirm``: the runtime is asked about
    the whole model in the first type; its answer serves all. A type costs about seven manifests;
    widths and predicted losses are shared by all of one space.
    """
    if costs is None or not applies(costs, spec):
        return None
    reached: list[tuple[Point, Curve]] = []
    searches: dict[Space, Search] = {}
    answer: RunMemory | None = None
    for quant in (quant for quant in measurable(spec) if quant in costs.types):
        fitting: list[tuple[Point, Curve]] = []
        typed = spec.with_type(quant)
        blocks = typed.whole_blocks(checkpoint.config.moe_intermediate_size)
        for way in (typed, blocks) if blocks else (typed,):
            evidence, pricer = evidence_of(way), Pricer(checkpoint, way.target, answer)
            if evidence is None:
                return None
            space = evidence.space
            if space not in searches:
                searches[space] = Search(way, space, evidence, pricer, measured)
            if confirm and answer is None:
                pricer.confirm(whole_widths(space))
                answer = pricer.answer
            one = _fitting(searches[space].for_type(way, pricer), costs.types[quant].kl)
            fitting += [] if one is None else [one]
        reached += [min(fitting, key=lambda pair: pair[0].kl)] if fitting else []
    if not reached:
        return None
    points, curves = [point for point, _ in reached], [curve for _, curve in reached]
    chosen = best(points)
    return TypeChoice(
        chosen.quant,
        reason(chosen, points),
        {point.quant: point.keep_ratio for point in points},
        answer,
        points=tuple(point.to_json() for point in points),
        frontier=tuple(frontier_over_types(curves, spec.target.budget_bytes)),
    )


def _fitting(search: Search, type_kl: float) -> tuple[Point, Curve] | None:
    """A type's largest plan within the budget, and its plans of other sizes; None: none fits.

    Within a thousandth of the neurons: the chosen type's is then searched exactly.
    """
    close = max(1, search.total // _PARTS // search.space.multiple)
    size, first = search.within_budget(tolerance=close), search
    if size is None:
        return None
    search = first.shaped(size)
    priced = first.all_priced()
    if search.choice is not None:  # a trapezoid's shape moves its legal sizes a little
        again = search.within_budget(search.choice.near, tolerance=close)
        size, priced = (size, priced) if again is None else (again, search.all_priced())
    kept, quant = sum(map(sum, search.widths(size).values())), search.spec.target.options.quant
    total = search.pricer.checkpoint.config.expert_neurons
    point = Point(quant, kept / total, priced[size], search.kl(size), type_kl)
    return point, Curve(quant, type_kl, priced, search.near_kl, total)


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


def best(points: Sequence[Point]) -> Point:
    """The least loss; of equal ones the most precise type, which comes first."""
    return min(points, key=lambda point: point.kl)


def frontier_over_types(curves: Sequence[Curve], budget: int) -> list[dict[str, Any]]:
    """The best (type, size) at SHARES of ``budget``, as JSON values; no row where nothing fits."""
    rows = []
    for share in SHARES:
        size = round(share * budget)
        points = [point for curve in curves if (point := curve.within(size)) is not None]
        if points:
            rows.append({"share": share, "budget_bytes": size, **best(points).to_json()})
    return rows


def reason(chosen: Point, points: Sequence[Point]) -> str:
    """Why this one, in words with its numbers."""
    others = [point for point in points if point is not chosen]
    said = (
        f"the least predicted loss with {percent(chosen.keep_ratio, 0)} of the neurons: "
        f"{chosen.pruning_kl:.2g} nats by pruning and {chosen.type_kl:.2g} by the type"
    )
    if not others:
        return said
    second = best(others)
    return f"{said}; next is {second.quant} with {percent(second.keep_ratio, 0)}: {second.kl:.2g}"
