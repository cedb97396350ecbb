"""A method's plans by size, and the largest within a budget of bytes or at a keep ratio.

`Search` is the one place that looks for a size: for the plan itself (`planner`), for its shape, and
for every tensor type (`tensor_types`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tenp_edge.checkpoint.compression_plan import Widths
from tenp_edge.errors import UserError
from tenp_edge.models import ModelConfig
from tenp_edge.planning.budget.allocation import limited
from tenp_edge.planning.budget.allocators import Choice, Drop, allocator_of, at_size
from tenp_edge.planning.measured.kl_law import kl_range, predicted_kl
from tenp_edge.planning.measured.trials import Trial
from tenp_edge.planning.memory.pricing import Priced, Pricer
from tenp_edge.planning.options.target import PlanSpec, Target
from tenp_edge.planning.scores.tables import Evidence
from tenp_edge.planning.space import Space

KEEPS = (1.0, 0.9, 0.75, 0.6, 0.45, 0.3)  # of a frontier
_CONFIRMATIONS = 4
_INTERPOLATIONS = 3  # the second already lies within a thousandth of a 30B shape's budget
_GRID = 40  # nats of other sizes are interpolated between multiples of 1/40 of the neurons


class InfeasibleError(Exception):
    """Not even the smallest legal plan for ``target`` fits, ``priced``. `alternatives` makes of it
    what the user reads."""

    def __init__(self, priced: Priced, target: Target) -> None:
        super().__init__("not even the smallest plan fits")
        self.priced, self.target = priced, target


class Search:
    """The plans of ``spec`` by their number of neurons: widths, bytes, predicted nats.

    ``evidence``: None while there are no statistics; ``measured``: plans of this model that say
    what a loss means in nats. ``choice``: the trapezoid that was chosen, once one was (`shaped`).
    """

    def __init__(
        self,
        spec: PlanSpec,
        space: Space,
        evidence: Evidence | None,
        pricer: Pricer,
        measured: Sequence[Trial] = (),
    ) -> None:
        self.spec, self.space, self.evidence = spec, space, evidence
        self.pricer, self.measured = pricer, measured
        config = pricer.checkpoint.config
        self.allocator = allocator_of(spec.allocated, space, config, evidence, spec.options)
        self.choice: Choice | None = None
        self.priced: dict[int, int] = {}  # total bytes, by the sizes of the latest search
        self._widths: dict[int, Widths] = {}
        self._kl: dict[int, float] = {}

    def for_type(self, spec: PlanSpec, pricer: Pricer) -> Search:
        """The same plans as another file: what is known of widths and nats is shared."""
        other = Search.__new__(Search)
        vars(other).update(vars(self), spec=spec, pricer=pricer, priced={})
        return other

    def shaped(self, neurons: int) -> Search:
        """With alpha and the trapezoid's shape chosen for plans of about ``neurons``; itself for
        methods without one."""
        method, options = self.spec.allocated, self.spec.options
        allocator, choice = at_size(method, self.allocator, self.evidence, options, neurons)
        if choice is None:
            return self
        other = self.for_type(self.spec, self.pricer)
        other.allocator, other.choice, other._widths, other._kl = allocator, choice, {}, {}
        return other

    # One size.

    @property
    def near(self) -> int | None:
        """A guess of the largest plan's neurons, where a shape was chosen at one."""
        return None if self.choice is None else self.choice.near

    @property
    def total(self) -> int:
        return self.space.total_neurons

    @property
    def least(self) -> int:
        return self.allocator.least_neurons

    def widths(self, neurons: int) -> Widths:
        """The method's plan within ``neurons``; the full model where everything is kept."""
        if neurons >= self.total:
            return whole_widths(self.space)
        if neurons not in self._widths:
            widths, max_widths = self.allocator.widths(neurons), self.space.most_widths
            if max_widths is not None:
                widths = limited(self.allocator.widths, neurons, max_widths)
            self._widths[neurons] = widths
        return self._widths[neurons]

    def kl(self, neurons: int) -> float:
        """Predicted nats per token. Needs evidence."""
        if neurons not in self._kl:
            self._kl[neurons] = self.kl_of(self.widths(neurons))
        return self._kl[neurons]

    def kl_of(self, widths: Widths) -> float:
        assert self.evidence is not None, "nats are predicted from statistics"
        return predicted_kl(self.evidence.predicted_loss(widths), self.measured)

    def kl_range_of(self, widths: Widths) -> tuple[float, float]:
        """Where that lies in nine cases of ten."""
        assert self.evidence is not None
        loss = self.evidence.predicted_loss(widths)
        return kl_range(loss, self.measured, self.measured)

    def near_kl(self, neurons: int) -> float:
        """`kl`, interpolated between sizes of a grid."""
        step = max(1, self.total // _GRID)
        low = max(neurons // step * step, self.least)
        high = min(low + step, self.total)
        part = 0.0 if high == low else (neurons - low) / (high - low)
        return (1 - part) * self.kl(low) + part * self.kl(high)

    def smallest(self, confirm: bool) -> Priced:
        """The smallest legal plan, priced for itself."""
        return self._price(self.widths(self.least), confirm)

    def _price(self, widths: Widths, confirm: bool) -> Priced:
        return self.pricer.confirm(widths) if confirm else self.pricer(widths)

    # The largest.

    def largest(self, confirm: bool = False, near: int | None = None) -> Priced:
        """The plan of the requested size: at the keep ratio, or the largest within the budget.

        ``confirm``: it is within the budget by the runtime's answer for itself; where that is above
        what its search assumed, the search is repeated with it. ``near``: a guess of its neurons.
        Raises InfeasibleError where nothing legal fits.
        """
        for _ in range(_CONFIRMATIONS):
            neurons = self.size(confirm, near)
            widths = self.widths(neurons)
            priced = self._price(widths, confirm)
            if self.spec.options.keep is not None or priced.memory.headroom_bytes >= 0:
                return priced
            near = neurons
        smallest = self.smallest(confirm)
        if smallest.memory.headroom_bytes >= 0:
            return smallest
        raise InfeasibleError(smallest, self.spec.target)

    def size(self, confirm: bool = False, near: int | None = None) -> int:
        """How many neurons the plan of the requested size has.

        ``confirm``: where by the runtime's last answer nothing fits, it is asked about the smallest
        plan itself, whose buffers are smaller.
        """
        if self.spec.options.keep is not None:
            return self._at_ratio(self.spec.options.keep)
        neurons = self.within_budget(near)
        if neurons is None:
            cheapest = self.smallest(confirm)
            if cheapest.memory.headroom_bytes < 0:
                raise InfeasibleError(cheapest, self.spec.target)
            neurons = self.within_budget(near)
        return self.least if neurons is None else neurons

    def within_budget(self, near: int | None = None, tolerance: int = 1) -> int | None:
        """Neurons of the largest plan within the budget, at most ``tolerance`` steps short of it;
        None where none fits. Leaves the bytes of every size that was priced in ``priced``."""
        budget, self.priced = self.spec.target.budget_bytes, {}
        if self._bytes(self.total) <= budget:
            return self.total
        if self._bytes(self.least) > budget:
            return None
        step = self.space.multiple
        return largest_fitting(self.least, self.total, step, self._bytes, budget, near, tolerance)

    def _bytes(self, neurons: int) -> int:
        """Predicted peak memory."""
        if neurons not in self.priced:
            self.priced[neurons] = self.pricer(self.widths(neurons)).memory.total_bytes
        return self.priced[neurons]

    def all_priced(self) -> dict[int, int]:
        """Total bytes by the sizes of the latest search, the smallest among them."""
        self._bytes(self.least)
        return self.priced

    def _at_ratio(self, keep: float) -> int:
        if isinstance(self.allocator, Drop):
            return self.allocator.neurons_at(keep)
        neurons, space = self.space.budget(keep), self.space
        if neurons < self.least:
            floor = self.least / self.total
            raise UserError(
                f"--keep {keep:g} is below the smallest legal plan, {floor:.4f} "
                f"(cut experts are at least {space.legal_widths[0]} of {space.full} neurons wide)",
                f"--keep {_round_up(floor, 10_000):g} or a smaller --set width-multiple",
            )
        return neurons

    # Other sizes.

    def frontier(self, chosen: Priced) -> list[dict[str, Any]]:
        """RAM against predicted nats at KEEPS and of the ``chosen`` plan, largest first, as JSON
        values."""
        plans = [chosen]
        for keep in KEEPS:
            if keep < 1 and isinstance(self.allocator, Drop):
                plans.append(self.pricer(self.widths(self.allocator.neurons_at(keep))))
            elif self.space.budget(keep) >= self.least:
                plans.append(self.pricer(self.widths(self.space.budget(keep))))
        points = {
            priced.keep_ratio: {
                "keep_ratio": priced.keep_ratio,
                "total_bytes": priced.memory.total_bytes,
                "predicted_kl": self.kl_of(priced.widths),
                "chosen": priced is chosen,
            }
            for priced in reversed(plans)  # of two of one size the chosen one stays
        }
        return [points[keep] for keep in sorted(points, reverse=True)]


def make_space(
    config: ModelConfig,
    width_multiple: int,
    most_widths: int | None = None,
    in_blocks: bool = False,
) -> Space:
    """``in_blocks``: the widest legal width is a multiple too, where the model's own is none."""
    full = config.moe_intermediate_size
    full -= full % width_multiple if in_blocks else 0
    return Space(config.moe_layers, config.num_experts, full, width_multiple, most_widths)


def whole_widths(space: Space) -> Widths:
    return dict.fromkeys(space.layers, (space.full,) * space.experts)


def largest_fitting(
    min_neurons: int,
    max_neurons: int,
    step: int,
    price: Callable[[int], int],
    budget: int,
    near: int | None = None,
    tolerance: int = 1,
) -> int:
    """The largest of ``min_neurons`` and every ``step`` above it whose price is within ``budget``.

    price(min_neurons) <= budget < price(max_neurons), in bytes. Bytes are nearly linear in
    neurons, so the first guesses are interpolated (the first of all is ``near``, where there is a
    better one); the bracket then doubles away from the last and is bisected, which leaves few
    prices to work out and an exact answer wherever prices rise. With a ``tolerance`` it may be so
    many steps short of the largest.
    """
    low, high = 0, -(-(max_neurons - min_neurons) // step)
    low_price, high_price = price(min_neurons), price(max_neurons)
    fits, probe = True, None if near is None else (near - min_neurons) // step
    for _ in range(_INTERPOLATIONS):
        if high - low <= tolerance:
            break
        if probe is None:
            part = (budget - low_price) * (high - low) // max(high_price - low_price, 1)
            probe = low + part
        probe = min(max(probe, low + 1), high - 1)
        probe_price = price(min_neurons + probe * step)
        fits = probe_price <= budget
        if fits:
            low, low_price = probe, probe_price
        else:
            high, high_price = probe, probe_price
        probe = None
    reach = tolerance
    while high - low > tolerance:
        near = low + reach if fits else high - reach
        reach *= 2
        probe = near if low < near < high else (low + high) // 2
        fits = price(min_neurons + probe * step) <= budget
        low, high = (probe, high) if fits else (low, probe)
    return min_neurons + low * step


def sufficient(nbytes: int) -> str:
    """A size for --ram that is at least ``nbytes``, with two digits: "4.32GiB"."""
    unit, scale = ("GiB", 2**30) if nbytes >= 2**30 else ("MiB", 2**20)
    return f"{_round_up(nbytes / scale, 100):.2f}{unit}"


def _round_up(value: float, parts: int) -> float:
    return -int(-value * parts // 1) / parts
