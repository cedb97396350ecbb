"""The search under the budget: a checkpoint, a device and a RAM number -> CompressionPlan.

The exporter's manifest is the only accounting of weights: every candidate is priced by the files
that would really be written for it. What the run takes besides is the runtime's own answer, for the
plan that is returned (``confirm``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

from tenp_edge.allocation import Space
from tenp_edge.alternatives import Smallest, refusal
from tenp_edge.checkpoint import Checkpoint
from tenp_edge.devices import DeviceProfile
from tenp_edge.errors import UserError
from tenp_edge.evidence import Evidence
from tenp_edge.frontier import frontier, predicted_kl
from tenp_edge.jointsearch import choose_jointly
from tenp_edge.plan import CompressionPlan
from tenp_edge.pricing import Priced, Pricer, draft
from tenp_edge.probes import best_way
from tenp_edge.recipe import make_recipe, memory_json
from tenp_edge.registry import placed_files
from tenp_edge.request import METHODS, RANKINGS, PlanRequest, Target, check_request, make_target
from tenp_edge.sizing import (
    InfeasibleError,
    evidence_for,
    make_allocator,
    make_space,
    plain_allocator,
    price_plan,
    smallest,
    sufficient,
    whole_widths,
)
from tenp_edge.statistics import Statistics
from tenp_edge.trials import Trial
from tenp_edge.typechoice import TypeChoice, candidates, choose_type, enough
from tenp_edge.typecosts import TypeCosts
from tenp_edge.units import format_size

__all__ = ["METHODS", "RANKINGS", "PlanRequest", "Target", "make_plan", "make_target"]

ExtraFiles = Callable[[CompressionPlan], Mapping[str, int]]


def make_plan(
    checkpoint: Checkpoint,
    profile: DeviceProfile,
    request: PlanRequest,
    statistics: Statistics | None = None,
    extra_files: ExtraFiles | None = None,
    measured: Sequence[Trial] = (),
    confirm: bool = False,
    costs: TypeCosts | None = None,
) -> CompressionPlan:
    """The largest legal plan of the requested method within the budget or the keep ratio.

    With ``statistics`` the plan names the retained neurons, and method tenp chooses alpha and the
    trapezoid's shape by predicted loss (`saliency.cut_losses`). Without, it plans by bytes with
    the paper's shape. Where the request names no type, one is chosen: with ``costs``, what each was
    measured to cost, types and widths together (`jointchoice`), else by a rule (`typechoice`).
    ``extra_files`` adds exact sizes of further weight files (the pruned checkpoint's);
    ``measured`` are plans of this model that were run: they say what a loss means in nats, and for
    the default method which way of sharing out width was best near the plan's size (`probes`).
    ``confirm``: the memory is the runtime's own answer for the very plan; without, it is estimated.
    Raises UserError when nothing legal fits, with what would.
    """

    def make(asked: PlanRequest) -> CompressionPlan:
        return _made(checkpoint, profile, asked, statistics, extra_files, measured, confirm, costs)

    plan = make(request)
    way = best_way(measured, request, plan.keep_ratio) if plan.keep_ratio < 1 else {}
    if not way:
        return plan
    better = make(replace(request, **way))
    return replace(better, recipe={**better.recipe, "way": way})


def _made(
    checkpoint: Checkpoint,
    profile: DeviceProfile,
    request: PlanRequest,
    statistics: Statistics | None,
    extra_files: ExtraFiles | None,
    measured: Sequence[Trial],
    confirm: bool,
    costs: TypeCosts | None,
) -> CompressionPlan:
    """The plan of the request as it is."""
    check_request(request)
    check_model(checkpoint, statistics)
    evidence_of = _evidence_of(statistics, request)

    def target_of(asked: PlanRequest) -> tuple[Target, TypeChoice | None]:
        return _target(checkpoint, profile, asked, confirm, evidence_of, costs, measured)

    def smallest_of(asked: PlanRequest) -> Priced:
        target, typed = target_of(asked)
        space, pricer = _space(checkpoint, target), _pricer(checkpoint, target, typed)
        first = plain_allocator(checkpoint.config, space, evidence_of(space), asked, target)
        return smallest(first, space, pricer, confirm)

    target, typed = target_of(request)
    space, pricer = _space(checkpoint, target), _pricer(checkpoint, target, typed)
    evidence = evidence_of(space)
    if confirm and request.keep is None and pricer.answer is None:
        pricer.confirm(whole_widths(space))  # What the search then assumes of every narrower plan.
    try:
        allocator, choice = make_allocator(
            checkpoint.config, space, evidence, request, pricer, confirm
        )
        near = None if choice is None else choice.near
        priced = price_plan(allocator, space, request, pricer, near, confirm)
    except InfeasibleError as found:
        raise refusal(found, checkpoint, request, smallest_of) from None
    _check_fits(priced, request, smallest_of)
    recipe = make_recipe(checkpoint, priced, target, request, allocator, evidence, choice)
    if evidence is not None:
        recipe["predicted_kl"] = predicted_kl(recipe["predicted_loss"], measured)
        recipe |= _type_kl(costs, target, request)
        if request.frontier:
            recipe["frontier"] = frontier(allocator, space, evidence, pricer, priced, measured)
    plan = replace(
        draft(checkpoint, priced.widths),
        retained=None if evidence is None else evidence.retained(priced.widths),
        recipe=recipe | ({} if typed is None else {"type_choice": typed.to_json()}),
        memory=memory_json(priced, target, evidence),
        files=placed_files(target.exporter, priced.manifest),
    )
    if extra_files is None:
        return plan
    return replace(plan, files={**plan.files, **extra_files(plan)})


EvidenceOf = Callable[[Space], Evidence | None]


def _evidence_of(statistics: Statistics | None, request: PlanRequest) -> EvidenceOf:
    """The evidence for a space of widths, worked out once for each."""

    @cache
    def found(space: Space) -> Evidence | None:
        return None if statistics is None else evidence_for(statistics, space, request)

    return found


def _pricer(checkpoint: Checkpoint, target: Target, typed: TypeChoice | None) -> Pricer:
    """With what the runtime said already while the type was chosen."""
    return Pricer(checkpoint, target, None if typed is None else typed.answer)


def _space(checkpoint: Checkpoint, target: Target) -> Space:
    return make_space(checkpoint.config, target.width_multiple, target.most_widths)


def _target(
    checkpoint: Checkpoint,
    profile: DeviceProfile,
    request: PlanRequest,
    confirm: bool,
    evidence_of: EvidenceOf,
    costs: TypeCosts | None,
    measured: Sequence[Trial],
) -> tuple[Target, TypeChoice | None]:
    """The target, with a type chosen where the request leaves it open."""
    positions = checkpoint.config.max_position_embeddings
    target, typed = make_target(profile, request, positions), None

    def target_of(quant: str) -> Target:
        return make_target(profile, replace(request, quant=quant), positions)

    def evidence_at(own: Target) -> Evidence | None:
        return evidence_of(_space(checkpoint, own))

    typed = choose_jointly(
        checkpoint, request, target, target_of, evidence_at, costs, measured, confirm
    )
    types = candidates(target, request)
    if types and typed is None:
        space = make_space(checkpoint.config, target.width_multiple)
        least = enough(request.method)
        typed = choose_type(checkpoint, space, types, target_of, confirm, least)
    if typed is not None:
        target = target_of(typed.quant)
    target.exporter.check(checkpoint.config, target.options)
    return target, typed


def _type_kl(costs: TypeCosts | None, target: Target, request: PlanRequest) -> dict[str, float]:
    """What the type costs by itself, where that was measured for such files."""
    options, found = target.options, None
    rules = options.tensor_types
    if costs and costs.conditions.holds(target.exporter.format, request.imatrix, rules):
        found = costs.kl(options.quant)
    return {} if found is None else {"type_kl": found}


def check_model(checkpoint: Checkpoint, statistics: Statistics | None) -> None:
    """Refuse a model that is pruned already, and statistics of another one."""
    config = checkpoint.config
    if any(w != config.moe_intermediate_size for row in config.expert_widths.values() for w in row):
        raise UserError(
            f"{checkpoint.path} is pruned already", "the original checkpoint, to plan again from"
        )
    if statistics is not None and statistics.fingerprint != checkpoint.fingerprint:
        raise UserError(
            f"the statistics belong to another checkpoint ({statistics.fingerprint[:12]}, "
            f"this one is {checkpoint.fingerprint[:12]})",
            "calibrate this model",
        )


def _check_fits(priced: Priced, request: PlanRequest, smallest_of: Smallest) -> None:
    """A pinned ratio must still respect a budget that was given."""
    if request.budget_bytes is None or priced.memory.headroom_bytes >= 0:
        return
    assert request.keep is not None, "the search exceeded its budget"
    least = smallest_of(replace(request, keep=None)).memory.total_bytes
    ways = ["leave --keep out"] if least <= request.budget_bytes else []
    raise UserError(
        f"--keep {request.keep:g} needs {format_size(priced.memory.total_bytes)}; "
        f"--ram allows {format_size(priced.memory.budget_bytes)}",
        ", or ".join([*ways, f"--ram {sufficient(priced.memory.total_bytes)}"]),
    )
