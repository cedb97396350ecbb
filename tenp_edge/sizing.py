"""How many neurons a plan keeps: the method's allocator, and the largest plan within the bytes."""

from __future__ import annotations

from tenp_edge.allocation import Shape, Space, limited
from tenp_edge.errors import UserError
from tenp_edge.evidence import Evidence, Scores
from tenp_edge.models import ModelConfig
from tenp_edge.plan import Widths
from tenp_edge.pricing import Priced, Pricer
from tenp_edge.request import (
    FREE_METHODS,
    PlanRequest,
    Target,
    insurance,
    method_of,
    neuron_score,
)
from tenp_edge.search import (
    PAPER_SHAPE,
    PAPER_SHARE,
    Allocator,
    Choice,
    Drop,
    Free,
    FreeRules,
    Tenp,
    Uniform,
    choose_trapezoid,
    largest_fitting,
    shapes,
)
from tenp_edge.statistics import Statistics

_CONFIRMATIONS = 4


def make_space(config: ModelConfig, width_multiple: int, most_widths: int | None = None) -> Space:
    full = config.moe_intermediate_size
    return Space(config.moe_layers, config.num_experts, full, width_multiple, most_widths)


def evidence_for(statistics: Statistics, space: Space, request: PlanRequest) -> Evidence:
    """The statistics seen through the scores that the request asks for."""
    scores = Scores(
        request.expert_score,
        neuron_score(request, statistics.has_elimination),
        request.seed,
        shared_ranking=request.method in FREE_METHODS,
        insurance=insurance(request),
    )
    return Evidence(statistics, space, scores)


def _free_rules(request: PlanRequest) -> FreeRules:
    return FreeRules(
        by_loss=request.method == "adaptive",
        ranking=request.ranking or "global",
        shape=_shape(request),
        tilt=request.tilt or 0.0,
        unit=request.unit or 0.0,
        guards=request.guards,
    )


def _shape(request: PlanRequest) -> Shape:
    """The paper's shape with what the request pins."""
    return Shape(
        PAPER_SHAPE.shallow if request.shallow is None else request.shallow,
        PAPER_SHAPE.deep if request.deep is None else request.deep,
        PAPER_SHAPE.middle if request.middle is None else request.middle,
    )


# -- size ------------------------------------------------------------------------------------------


def make_allocator(
    config: ModelConfig,
    space: Space,
    evidence: Evidence | None,
    request: PlanRequest,
    pricer: Pricer,
    confirm: bool = False,
) -> tuple[Allocator, Choice | None]:
    """The method's allocator; for tenp with statistics, the best trapezoid at its size."""
    first = plain_allocator(config, space, evidence, request, pricer.target)
    if evidence is None or not isinstance(first, Tenp):
        return first, None
    neurons = neurons_within(first, space, request, pricer, confirm=confirm)
    return shaped(first, evidence, request, neurons)


def plain_allocator(
    config: ModelConfig,
    space: Space,
    evidence: Evidence | None,
    request: PlanRequest,
    target: Target,
) -> Allocator:
    """The method's allocator before its size is known: tenp in the paper's shape.

    Free widths need scores. Without them adaptive, the default, is a trapezoid of its size.
    """
    method = method_of(request, target)
    if method == "enp":
        return Uniform(space)
    if method == "drop":
        return Drop(space, config, evidence)
    if method in FREE_METHODS and evidence is not None:
        return Free(space, evidence, _free_rules(request))
    if method == "free":
        raise UserError(
            f"--method {method} ranks neurons and needs calibration",
            "--calibration WORK (tenp-edge calibrate), or --method tenp",
        )
    return Tenp(space, evidence, _shape(request), PAPER_SHARE, request.whole_share)


def shaped(
    first: Allocator, evidence: Evidence, request: PlanRequest, neurons: int
) -> tuple[Allocator, Choice | None]:
    """``first``; for tenp alpha and shape of the least predicted loss at ``neurons``."""
    space = evidence.space
    if not isinstance(first, Tenp) or neurons == space.total_neurons:
        return first, None
    candidates = [first.shape, *shapes(request.shallow, request.deep, request.middle)]
    choice = choose_trapezoid(first, evidence, neurons, candidates)
    return Tenp(space, evidence, choice.shape, choice.alpha_share, request.whole_share), choice


def price_plan(
    allocator: Allocator,
    space: Space,
    request: PlanRequest,
    pricer: Pricer,
    near: int | None,
    confirm: bool,
) -> Priced:
    """The plan of the requested size. A confirmed one is within the budget by the runtime's answer
    for itself; where that is above what its search assumed, the search is repeated with it."""
    for _ in range(_CONFIRMATIONS):
        neurons = neurons_within(allocator, space, request, pricer, near, confirm)
        widths = widths_at(allocator, space, neurons)
        priced = pricer.confirm(widths) if confirm else pricer(widths)
        if request.keep is not None or priced.memory.headroom_bytes >= 0:
            return priced
        near = neurons
    least = smallest(allocator, space, pricer, confirm)
    if least.memory.headroom_bytes >= 0:
        return least
    raise InfeasibleError(least, pricer.target)


def neurons_within(
    allocator: Allocator,
    space: Space,
    request: PlanRequest,
    pricer: Pricer,
    near: int | None = None,
    confirm: bool = False,
) -> int:
    """How many neurons to keep: as ``keep`` says, else as many as fit in the budget.

    ``confirm``: where by the runtime's last answer nothing fits, it is asked about the smallest
    plan itself, whose buffers are smaller. Raises InfeasibleError where that does not fit either.
    """
    if request.keep is not None:
        return _neurons_at_ratio(allocator, space, request.keep)
    budget = pricer.target.budget_bytes

    def price(neurons: int) -> int:
        return pricer(widths_at(allocator, space, neurons)).memory.total_bytes

    if price(space.total_neurons) <= budget:
        return space.total_neurons
    if price(allocator.least_neurons) > budget:
        cheapest = smallest(allocator, space, pricer, confirm)
        if cheapest.memory.headroom_bytes < 0:
            raise InfeasibleError(cheapest, pricer.target)
    step = space.multiple
    least, most = allocator.least_neurons, space.total_neurons
    return largest_fitting(least, most, step, price, budget, near)


def _neurons_at_ratio(allocator: Allocator, space: Space, keep: float) -> int:
    if isinstance(allocator, Drop):
        return allocator.neurons_at(keep)
    neurons, least = space.budget(keep), allocator.least_neurons
    if neurons < least:
        floor = least / space.total_neurons
        raise UserError(
            f"--keep {keep:g} is below the smallest legal plan, {floor:.4f} "
            f"(cut experts are at least {space.legal_widths[0]} of {space.full} neurons wide)",
            f"--keep {_round_up(floor, 10_000):g} or a smaller --width-multiple",
        )
    return neurons


def widths_at(allocator: Allocator, space: Space, neurons: int) -> Widths:
    """The allocator's plan; the full model where everything is kept."""
    if neurons >= space.total_neurons:
        return whole_widths(space)
    return limited(allocator.widths, neurons, space.most_widths)


def whole_widths(space: Space) -> Widths:
    return dict.fromkeys(space.layers, (space.full,) * space.experts)


# -- refusing --------------------------------------------------------------------------------------


class InfeasibleError(Exception):
    """Not even the smallest legal plan for ``target`` fits, ``priced``. `alternatives` makes of it
    what the user reads."""

    def __init__(self, priced: Priced, target: Target) -> None:
        super().__init__("not even the smallest plan fits")
        self.priced, self.target = priced, target


def smallest(allocator: Allocator, space: Space, pricer: Pricer, confirm: bool) -> Priced:
    """The smallest legal plan, priced for itself."""
    widths = widths_at(allocator, space, allocator.least_neurons)
    return pricer.confirm(widths) if confirm else pricer(widths)


def sufficient(nbytes: int) -> str:
    """A size for --ram that is at least ``nbytes``, with two digits: "4.32GiB"."""
    unit, scale = ("GiB", 2**30) if nbytes >= 2**30 else ("MiB", 2**20)
    return f"{_round_up(nbytes / scale, 100):.2f}{unit}"


def _round_up(value: float, parts: int) -> float:
    return -int(-value * parts // 1) / parts
