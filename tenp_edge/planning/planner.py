"""The search under the budget: a checkpoint, a device and a RAM number -> CompressionPlan.

The exporter's manifest is the only accounting of weights: every candidate is priced by the files
that would really be written for it. What the run takes besides is the runtime's own answer, for the
plan that is returned (``confirm``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Any

from tenp_edge.calibration.storage import CALIBRATE, Statistics
from tenp_edge.checkpoint.blocks import down_block
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.tensor_types import AUTO
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import placed_files
from tenp_edge.planning.budget.alternatives import refusal
from tenp_edge.planning.budget.search import (
    InfeasibleError,
    Search,
    make_space,
    sufficient,
    whole_widths,
)
from tenp_edge.planning.budget.tensor_types import (
    TypeChoice,
    applies,
    choose_by_rule,
    choose_jointly,
)
from tenp_edge.planning.describe import blocks_chosen, blocks_offered, make_record, memory_json
from tenp_edge.planning.joint.least import least as smallest_joint
from tenp_edge.planning.joint.plan import JointPlan, JointPlanner, joins, joint_pricer
from tenp_edge.planning.measured.probes import best_way
from tenp_edge.planning.measured.rounding_errors import RoundingErrors
from tenp_edge.planning.measured.trials import Changes, Trial
from tenp_edge.planning.measured.type_costs import TypeCosts
from tenp_edge.planning.memory.pricing import Priced, Pricer, draft
from tenp_edge.planning.options.devices import DeviceProfile
from tenp_edge.planning.options.spec import BLOCKS, PlanOptions
from tenp_edge.planning.options.target import PlanSpec, resolve
from tenp_edge.planning.scores.pack import evidence_of
from tenp_edge.planning.scores.tables import Evidence, Scores, scores_of
from tenp_edge.planning.space import Space
from tenp_edge.units import format_size

ExtraFiles = Callable[[CompressionPlan], Mapping[str, int]]


def make_plan(
    checkpoint: Checkpoint,
    profile: DeviceProfile,
    options: PlanOptions,
    statistics: Statistics | None = None,
    extra_files: ExtraFiles | None = None,
    measured: Sequence[Trial] = (),
    confirm: bool = False,
    costs: TypeCosts | None = None,
    rounding: RoundingErrors | None = None,
    least: bool = False,
) -> CompressionPlan:
    """The largest legal plan of the requested method within the budget or the keep ratio.

    With ``statistics`` the plan names the retained neurons, and method tenp chooses alpha and the
    trapezoid's shape by predicted loss (`losses.cut_losses`). Without, it plans by bytes with
    the paper's shape. Where the options name no type (or auto), types are chosen: with
    ``rounding``, what it does to this model, of every tensor together with the widths
    (`joint.plan`); with ``costs``, what each type was measured to cost, one for the file, else by a
    rule (`tensor_types`).
    ``extra_files`` adds exact sizes of further weight files (the pruned checkpoint's);
    ``measured`` are plans of this model that were run (else those of ``rounding``): they say what a
    loss means in nats, and for the default method which way of sharing out width was best near the
    plan's size (`probes`).
    ``least``: before a calibration that measures what rounding does, the smallest plan that it may
    lead to. ``confirm``: the memory is the runtime's own answer for the very plan; without, it is
    estimated. Raises UserError when nothing legal fits, with what would.
    """
    measured = measured or (() if rounding is None else rounding.cuts)
    inputs = _Given(checkpoint, profile, statistics, measured, confirm, costs, rounding, least)
    try:
        largest = inputs.found(options)
    except InfeasibleError as infeasible:
        raise refusal(infeasible, checkpoint, options, inputs.smallest) from None
    search, priced, evidence = largest.search, largest.priced, largest.search.evidence
    record = make_record(checkpoint, search, priced)
    record = replace(
        record,
        notes=(*record.notes, *largest.notes),
        type_kl=largest.joint.type_kl if largest.joint else inputs.type_kl(search.spec),
        frontier=largest.frontier(),
        type_choice=largest.type_choice(),
        way=largest.way or None,
    )
    plan = replace(
        draft(
            checkpoint,
            priced.widths,
            priced.types,
            priced.constants,
            keeps_places=search.pricer.keeps_places,
        ),
        retained=None if evidence is None else evidence.retained(priced.widths),
        means=None if evidence is None else evidence.means(priced.constants) or None,
        record=record,
        memory=memory_json(search, priced),
        files=placed_files(search.spec.target.exporter, priced.manifest),
    )
    if extra_files is None:
        return plan
    return replace(plan, files={**plan.files, **extra_files(plan)})


@dataclass(frozen=True)
class _Found:
    """The largest plan of one search, and what a reader should know about how it was chosen."""

    search: Search
    priced: Priced
    typed: TypeChoice | None
    notes: tuple[str, ...] = ()
    joint: JointPlan | None = None
    way: Changes = field(default_factory=dict)

    def rank(self) -> float:
        """Predicted nats, or without statistics the share that is cut: the less the better."""
        if self.search.evidence is None:
            return 1 - self.priced.keep_ratio
        return self.search.kl_of(self.priced.widths)

    def frontier(self) -> tuple[dict[str, Any], ...]:
        """Plans of other sizes, the largest first, where they were asked for."""
        if self.joint is not None:
            return self.joint.frontier[::-1]
        asked = self.search.evidence is not None and self.search.spec.options.frontier
        return tuple(self.search.frontier(self.priced)) if asked else ()

    def type_choice(self) -> dict[str, Any] | None:
        chosen = self.joint or self.typed
        return None if chosen is None else chosen.to_json()


@dataclass(frozen=True)
class _Given:
    """What plans of one model are made from; what is worked out for one serves all."""

    checkpoint: Checkpoint
    profile: DeviceProfile
    statistics: Statistics | None
    measured: Sequence[Trial]
    confirm: bool
    costs: TypeCosts | None
    rounding: RoundingErrors | None = None
    least: bool = False
    _evidence: dict[tuple[Space, Scores], Evidence] = field(default_factory=dict)

    def found(self, options: PlanOptions) -> _Found:
        """The plan. Raises InfeasibleError where none fits."""
        if self.least:
            return self.least_found(options)
        return self.joint(options) or self.in_best_way(options)

    def in_best_way(self, options: PlanOptions) -> _Found:
        """`largest`, its width shared out as measured best near its size."""
        found = self.largest(options)
        way = self._way(options, found.priced.keep_ratio)
        return replace(self.largest(replace(options, **way)), way=way) if way else found

    def _way(self, options: PlanOptions, keep: float) -> Changes:
        return best_way(self.measured, options, keep) if keep < 1 else {}

    def largest(self, options: PlanOptions) -> _Found:
        """The best of the largest plans that ``options`` describe: with every legal width, or with
        whole blocks of the tensor type alone, where that buys more."""
        search, typed = self.search(options)
        best = _Found(search, search.largest(self.confirm, search.near), typed)
        self.check_fits(best.priced, options)
        blocks = self._in_blocks(search)
        if blocks is None:
            return best
        if best.priced.keep_ratio == 1.0:
            return replace(best, notes=blocks_offered(search, blocks))
        try:
            other = replace(best, search=blocks, priced=blocks.largest(self.confirm, blocks.near))
        except InfeasibleError:
            return best
        if best.rank() <= other.rank():
            return best
        said = blocks_chosen(best.priced, other.priced, blocks.space.multiple)
        return replace(other, notes=said)

    def joint(self, options: PlanOptions) -> _Found | None:
        """The best of all widths and types together, in the way that measured best near its size;
        None where they are not to be chosen, and where rounding was not measured."""
        planner = self._joined(options)
        if planner is None:
            return None
        budget = planner.spec.target.budget_bytes
        way = self._way(options, planner.keep_within(budget))
        if way:
            way = {**way, "ranking": "global"}  # It compares all layers.
            planner = self._joint_planner(replace(options, **way))
        found = planner.plan(budget, self.confirm)
        if found is None:
            raise InfeasibleError(planner.smallest(self.confirm), planner.spec.target)
        evidence, pricer = planner.evidence, planner.pricer
        search = Search(planner.spec, evidence.space, evidence, pricer, self.measured)
        return _Found(search, found.priced, None, found.notes, found, way)

    def _joined(self, options: PlanOptions) -> JointPlanner | None:
        """What chooses them together; None where nothing does."""
        spec = resolve(options, self.profile, self.checkpoint.config.max_position_embeddings)
        if self.rounding is None or spec.sized or not joins(spec, self.rounding, self.statistics):
            return None
        check_model(self.checkpoint, self.statistics)
        return self._joint_planner(options)

    def least_found(self, options: PlanOptions) -> _Found:
        """The smallest that `joint` may find."""
        priced, spec = self._least(options)
        if priced.memory.headroom_bytes < 0:
            raise InfeasibleError(priced, spec.target)
        pricer = joint_pricer(self.checkpoint, spec)
        return _Found(Search(spec, self._space(spec), None, pricer, ()), priced, None)

    def _least(self, options: PlanOptions) -> tuple[Priced, PlanSpec]:
        check_model(self.checkpoint, None)
        positions = self.checkpoint.config.max_position_embeddings
        spec = resolve(options, self.profile, positions).with_type(AUTO)
        pricer = joint_pricer(self.checkpoint, spec)
        return smallest_joint(spec, self._space(spec), pricer, self.confirm), spec

    def _joint_planner(self, options: PlanOptions) -> JointPlanner:
        positions = self.checkpoint.config.max_position_embeddings
        spec = resolve(options, self.profile, positions).with_type(AUTO)
        evidence, pricer = self.evidence(spec), joint_pricer(self.checkpoint, spec)
        assert evidence is not None and self.rounding is not None
        return JointPlanner(self.checkpoint, spec, evidence, self.rounding, pricer, self.measured)

    def _in_blocks(self, search: Search) -> Search | None:
        """``search`` with widths of whole blocks; None where every width is, and none would be."""
        spec = search.spec.whole_blocks(self.checkpoint.config.moe_intermediate_size)
        if spec is None:
            return None
        pricer = Pricer(self.checkpoint, spec.target, search.pricer.answer)
        other = Search(spec, self._space(spec), self.evidence(spec), pricer, self.measured)
        shaped = spec.allocated.shaped and other.evidence is not None
        return other.shaped(other.size(self.confirm)) if shaped else other

    def search(self, options: PlanOptions) -> tuple[Search, TypeChoice | None]:
        """The search that ``options`` describe, with the type chosen where they leave it open and
        the trapezoid's shape by predicted loss."""
        check_model(self.checkpoint, self.statistics)
        spec, typed = self._typed(options)
        search = self._plain(spec, typed)
        if self.confirm and options.keep is None and search.pricer.answer is None:
            # What the search then assumes of every narrower plan.
            search.pricer.confirm(whole_widths(search.space))
        if spec.allocated.shaped and search.evidence is not None:
            search = search.shaped(search.size(self.confirm))
        return search, typed

    def smallest(self, options: PlanOptions) -> Priced:
        """The smallest legal plan that ``options`` allow."""
        if self.least:
            return self._least(options)[0]
        planner = self._joined(options)
        if planner is not None:
            return planner.smallest(self.confirm)
        return self._plain(*self._typed(options)).smallest(self.confirm)

    def _plain(self, spec: PlanSpec, typed: TypeChoice | None) -> Search:
        """With what the runtime said already while the type was chosen."""
        pricer = Pricer(self.checkpoint, spec.target, None if typed is None else typed.answer)
        return Search(spec, self._space(spec), self.evidence(spec), pricer, self.measured)

    def _typed(self, options: PlanOptions) -> tuple[PlanSpec, TypeChoice | None]:
        """The spec, with a type chosen where the options leave it open."""
        config = self.checkpoint.config
        spec = resolve(options, self.profile, config.max_position_embeddings)
        typed = choose_jointly(
            self.checkpoint, spec, self.evidence, self.costs, self.measured, self.confirm
        )
        if typed is None:
            space = make_space(config, spec.target.width_multiple)
            typed = choose_by_rule(self.checkpoint, spec, space, self.confirm)
        spec = spec if typed is None else spec.with_type(typed.quant)
        block = self._block(spec)
        if block > 1:
            multiple = lcm(spec.target.width_multiple, block)
            target = replace(spec.target, width_multiple=multiple)
            spec = replace(spec, target=target, in_blocks=True)
        spec.target.exporter.check(config, spec.target.options)
        return spec, typed

    def _block(self, spec: PlanSpec) -> int:
        """How many neurons stay or go together."""
        return down_block(self.checkpoint) if spec.options.down == BLOCKS else 1

    def _space(self, spec: PlanSpec) -> Space:
        target = spec.target
        return make_space(
            self.checkpoint.config, target.width_multiple, target.most_widths, spec.in_blocks
        )

    def evidence(self, spec: PlanSpec) -> Evidence | None:
        """The statistics as the spec's method sees them."""
        if self.statistics is None:
            return None
        scores = scores_of(spec.method, spec.options, self.statistics, spec.options.seed)
        key = self._space(spec), replace(scores, block=self._block(spec))
        if key not in self._evidence:
            self._evidence[key] = evidence_of(self.statistics, *key)
        return self._evidence[key]

    def type_kl(self, spec: PlanSpec) -> float | None:
        """What the type costs by itself, where that was measured for such files."""
        if self.costs is None or self.statistics is None or not applies(self.costs, spec):
            return None
        return self.costs.kl(spec.target.options.quant)

    def check_fits(self, priced: Priced, options: PlanOptions) -> None:
        """A pinned ratio must still respect a budget that was given."""
        if options.budget_bytes is None or priced.memory.headroom_bytes >= 0:
            return
        assert options.keep is not None, "the search exceeded its budget"
        min_bytes = self.smallest(replace(options, keep=None)).memory.total_bytes
        ways = ["leave --keep out"] if min_bytes <= options.budget_bytes else []
        raise UserError(
            f"--keep {options.keep:g} needs {format_size(priced.memory.total_bytes)}; "
            f"--ram allows {format_size(priced.memory.budget_bytes)}",
            ", or ".join([*ways, f"--ram {sufficient(priced.memory.total_bytes)}"]),
        )


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
            CALIBRATE,
        )
