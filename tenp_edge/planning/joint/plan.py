"""Widths and types of every tensor for a number of bytes: the plan of ``--quant auto``.

The tables say what every choice costs, the search what is best within so many bytes, the exporter's
manifest what a plan really takes. Beside it, for the reader: other RAM numbers, and the best mix of
one name that leaves the model whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import CompressionPlan, Widths
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.tensor_types import AUTO, TensorTypes
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.mixing import LayoutRules, Mixer
from tenp_edge.planning.joint.losses import Factors, measured_factors
from tenp_edge.planning.joint.search import Chosen, Indices, JointSearch
from tenp_edge.planning.joint.tables import Pricing, Tables, expert_tables, other_table
from tenp_edge.planning.measured.all_text import cost_elsewhere
from tenp_edge.planning.measured.kl_law import kl_range, predicted_kl
from tenp_edge.planning.measured.rounding_errors import RoundingErrors
from tenp_edge.planning.measured.trials import Trial
from tenp_edge.planning.memory.pricing import NO_CONSTANTS, Constants, Priced, Pricer, draft
from tenp_edge.planning.options.target import PlanSpec, Target
from tenp_edge.planning.scores.tables import Evidence

_ROUNDS = 6  # of pricing: what is not weights hardly changes from plan to plan
_NOTICED = 1.5  # of what cuts cost other text: from here on a plan speaks of it
_SPARE = 2e-3  # of a budget: so little may be left over where nodes go by the types
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 1.75)  # of the weights' bytes


@dataclass(frozen=True)
class JointPlan:
    """``priced`` with its types; nats per token: ``kl`` in all, and where it lies in nine
    cases of ten, ``cut_kl`` and ``type_kl`` of each
    alone. ``frontier``, ``whole`` and ``wholes``: other sizes, the model uncut within the same
    bytes, and uncut in every mix of one name, as JSON values. ``elsewhere``: how many times
    as much its cuts cost text of other kinds (`measured.all_text`)."""

    priced: Priced
    kl: float
    kl_range: tuple[float, float]
    cut_kl: float
    type_kl: float
    bits: float
    frontier: tuple[dict[str, Any], ...]
    whole: dict[str, Any] | None
    wholes: tuple[dict[str, Any], ...] = ()
    elsewhere: float = 1.0

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the plan should know, in sentences."""
        if self.elsewhere < _NOTICED or self.priced.keep_ratio == 1:
            return ()
        return (
            f"cutting costs text of other kinds about {self.elsewhere:.2g} times what it "
            "costs the calibrated one: more neurons stay for it, in fewer bits. With more kinds "
            "in --data the plan knows which ones they need",
        )

    def to_json(self) -> dict[str, Any]:
        shares = self.priced.manifest.type_shares
        return {
            "quant": AUTO,
            "by": "joint search",
            "kl": self.kl,
            "kl_range": list(self.kl_range),
            "pruning_kl": self.cut_kl,
            "type_kl": self.type_kl,
            "cost_elsewhere": self.elsewhere,
            "bits_per_weight": self.bits,
            "types": dict(shares),
            "frontier": list(self.frontier),
            "whole": self.whole,
            "wholes": list(self.wholes),
        }


class JointPlanner:
    """Plans of one model for ``spec``, whose type is `AUTO`; where ``pricer`` keeps places, experts
    may have no neurons."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        spec: PlanSpec,
        evidence: Evidence,
        errors: RoundingErrors,
        pricer: Pricer,
        measured: Sequence[Trial] = (),
    ) -> None:
        self.checkpoint, self.spec, self.evidence = checkpoint, spec, evidence
        self.errors, self.pricer, self.measured = errors, pricer, measured or errors.cuts
        assert isinstance(spec.target.exporter, Mixer)
        self.mixer: Mixer = spec.target.exporter
        self.options = ExportOptions(AUTO, spec.target.options.layout, imatrix=True)

    @cached_property
    def tables(self) -> Tables:
        config, factors = self.checkpoint.config, self.factors
        types = mixable(self.checkpoint, self.spec)
        pricing = Pricing(self.mixer, types, config.hidden_size, "gate" in config.family.matrices)
        unit, widths = self.spec.options.unit or 0.0, self.evidence.space.legal_widths
        if self.pricer.keeps_places:
            means = self.evidence.statistics.has_means
            widths = (0, 0, *widths) if means else (0, *widths)
        experts = expert_tables(self.evidence, self.errors, pricing, factors, widths, unit)
        matrices = self.mixer.typed_matrices(config, self.options)
        others = other_table(matrices, self.errors, pricing, factors)
        return Tables(widths, types, tuple(experts), others)

    @cached_property
    def factors(self) -> Factors:
        return measured_factors(self.errors, self.evidence.statistics, self.mixer, self.measured)

    @cached_property
    def search(self) -> JointSearch:
        return self._search(self.spec.target.most_widths)

    def _search(self, most: int | None) -> JointSearch:
        return JointSearch(self.tables, self.rules.one_type, self.rules.alike, most)

    @cached_property
    def searches(self) -> tuple[JointSearch, ...]:
        """The widest first. Where every pair of a width and a type takes nodes of a graph, which
        are memory, too: also of half as many pairs, of a quarter, ... of one."""
        most = self.spec.target.most_widths
        if most is None or not (self.rules.alike and self.rules.nodes_by_types):
            return (self.search,)
        return self.search, *(self._search(most >> k) for k in range(1, most.bit_length()))

    @property
    def rules(self) -> LayoutRules:
        return self.mixer.rules(self.spec.target.options.layout or "")

    def plan(self, budget: int, confirm: bool = False) -> JointPlan | None:
        """The best plan within ``budget`` bytes of memory; None where the smallest does not fit.

        ``confirm``: within it by the runtime's own answer for that very plan.
        """
        best: tuple[Chosen, Priced, JointSearch] | None = None
        for search in self.searches:
            found = self._best(search, budget, confirm)
            if found is not None and (best is None or found[0].loss < best[0].loss):
                best = *found, search
        return None if best is None else self._described(*best)

    def _best(
        self, search: JointSearch, budget: int, confirm: bool
    ) -> tuple[Chosen, Priced] | None:
        """Of the choices of one ``search``."""
        chosen = search.smallest
        priced = self._priced(chosen, confirm)
        fits = priced.memory.total_bytes <= budget
        best: tuple[Chosen, Priced] | None = (chosen, priced) if fits else None
        for _ in range(_ROUNDS):
            besides = priced.memory.total_bytes - chosen.nbytes
            found = search.within(budget - besides)
            if found is None:
                break
            if best is not None and found.nbytes <= best[0].nbytes:
                break
            chosen, priced = found, self._priced(found, confirm)
            if priced.memory.total_bytes <= budget:
                best = chosen, priced
        if best is None:
            return None
        return self._filled_up(search, *best, budget, confirm)

    def _filled_up(
        self, search: JointSearch, chosen: Chosen, priced: Priced, budget: int, confirm: bool
    ) -> tuple[Chosen, Priced]:
        """A larger plan, where what a run takes besides the weights goes by the types, too, so that
        much is left over: by halves, between what fits and what might."""
        if not self.rules.nodes_by_types:
            return chosen, priced
        low, high = chosen.nbytes, chosen.nbytes + budget - priced.memory.total_bytes
        for _ in range(_ROUNDS):
            if high - low < _SPARE * budget:
                break
            middle = (low + high) / 2
            found = search.within(middle)
            other = None if found is None else self._priced(found, confirm)
            if found is None or other is None or other.memory.total_bytes > budget:
                high = middle
                continue
            low = middle
            if found.loss < chosen.loss:
                chosen, priced = found, other
        return chosen, priced

    def smallest(self, confirm: bool = False) -> Priced:
        """The fewest bytes that there are."""
        return self._priced(self.search.smallest, confirm)

    def keep_within(self, budget: int) -> float:
        """About the share of neurons that the best plan within ``budget`` keeps; 1 where none
        fits."""
        smallest = self.search.smallest
        asked = self.rules.nodes_by_types  # Then it is the graph that would be built otherwise.
        besides = self.smallest(asked).memory.total_bytes - smallest.nbytes
        found = self.search.within(budget - besides)
        return 1.0 if found is None else self._keep_ratio(found)

    def _priced(self, chosen: Chosen, confirm: bool) -> Priced:
        given = self.widths(chosen), self.types(chosen), self.constants(chosen)
        return self.pricer.confirm(*given) if confirm else self.pricer(*given)

    # -- what was chosen, in the plan's terms ------------------------------------------------------

    def widths(self, chosen: Chosen) -> Widths:
        legal = self.tables.widths
        return {
            table.layer: tuple(legal[index] for index in row)
            for table, row in zip(self.tables.experts, chosen.width, strict=True)
        }

    def constants(self, chosen: Chosen) -> Constants:
        """Experts without neurons that give their mean output, as (layer, expert)."""
        if self.tables.bare < 2:
            return NO_CONSTANTS
        rows = zip(self.tables.experts, chosen.width, strict=True)
        return frozenset(
            (table.layer, int(expert)) for table, row in rows for expert in np.flatnonzero(row == 1)
        )

    def types(self, chosen: Chosen) -> TensorTypes:
        others = zip(self.tables.others.keys, chosen.other, strict=True)
        return TensorTypes(
            self._rows(chosen.gate_up),
            self._rows(chosen.down),
            {key: self.tables.types[index] for key, index in others},
        )

    def _rows(self, indices: Indices) -> dict[int, tuple[str, ...]]:
        types = self.tables.types
        return {
            table.layer: tuple(types[index] for index in row)
            for table, row in zip(self.tables.experts, indices, strict=True)
        }

    def drafted(self, chosen: Chosen) -> CompressionPlan:
        """The plan with its neurons, without what is said of it."""
        widths, constants = self.widths(chosen), self.constants(chosen)
        given, places = (widths, self.types(chosen), constants), self.pricer.keeps_places
        plan = draft(self.checkpoint, *given, keeps_places=places)
        retained, means = self.evidence.retained(widths), self.evidence.means(constants)
        return replace(plan, retained=retained, means=means or None)

    # -- what is said of it ------------------------------------------------------------------------

    def kl(self, loss: float) -> float:
        """By mixed plans of this model where some were measured, else by cut ones."""
        return predicted_kl(loss, self.errors.plans or self.measured)

    def _described(self, chosen: Chosen, priced: Priced, search: JointSearch) -> JointPlan:
        besides, others = priced.memory.total_bytes - chosen.nbytes, self.spec.options.frontier
        return JointPlan(
            priced,
            self.kl(chosen.loss),
            kl_range(chosen.loss, self.errors.plans or self.measured, self.measured),
            self.kl(chosen.cut_loss),
            self.kl(chosen.type_loss),
            self._bits(chosen),
            tuple(self._frontier(chosen, search, besides)) if others else (),
            self._whole(chosen.nbytes) if others else None,
            tuple(self._wholes(besides)) if others else (),
            cost_elsewhere(chosen.cut_loss, self.measured, self.errors.elsewhere),
        )

    def _frontier(
        self, chosen: Chosen, search: JointSearch, besides: float
    ) -> Iterator[dict[str, Any]]:
        """Plans of other sizes, smallest first; the chosen one among them."""
        for share in SHARES:
            found = chosen if share == 1 else search.within(share * chosen.nbytes)
            if found is not None:
                yield {
                    "total_bytes": round(found.nbytes + besides),
                    "keep_ratio": self._keep_ratio(found),
                    "bits_per_weight": self._bits(found),
                    "predicted_kl": self.kl(found.loss),
                    "chosen": found is chosen,
                }

    def _keep_ratio(self, chosen: Chosen) -> float:
        widths = np.array(self.tables.widths)[chosen.width]
        return float(widths.mean() / self.checkpoint.config.moe_intermediate_size)

    def _bits(self, chosen: Chosen) -> float:
        """Of a weight of the experts that stays."""
        neurons = float(np.array(self.tables.widths)[chosen.width].sum())
        others = self.tables.others.nbytes
        outside = float(others[np.arange(len(others)), chosen.other].sum())
        config = self.checkpoint.config
        weights = len(config.family.matrices) * neurons * config.hidden_size
        return 8 * (chosen.nbytes - outside) / weights

    def _whole(self, nbytes: float) -> dict[str, Any] | None:
        """The uncut model in the format's best mix within ``nbytes``; None where none fits."""
        fitting = [(name, chosen) for name, chosen in self.wholes() if chosen.nbytes <= nbytes]
        if not fitting:
            return None
        name, chosen = min(fitting, key=lambda pair: pair[1].loss)
        return {
            "quant": name,
            "weights_bytes": round(chosen.nbytes),
            "bits_per_weight": self._bits(chosen),
            "predicted_kl": self.kl(chosen.loss),
        }

    def _wholes(self, besides: float) -> Iterator[dict[str, Any]]:
        for name, chosen in self.wholes():
            yield {
                "quant": name,
                "total_bytes": round(chosen.nbytes + besides),
                "bits_per_weight": self._bits(chosen),
                "predicted_kl": self.kl(chosen.loss),
            }

    def wholes(self) -> Iterator[tuple[str, Chosen]]:
        """The uncut model in each of the format's own mixes of the types that may be chosen."""
        writer, config = self.spec.target.exporter, self.checkpoint.config
        last = len(self.tables.widths) - 1
        shape = (len(self.tables.experts), config.num_experts)
        for quant in writer.quants:
            types = self.mixer.types_of(config, ExportOptions(quant, imatrix=True))
            if not types.names <= set(self.tables.types):
                continue
            gate_up, down = (self._indices(rows) for rows in (types.gate_up, types.down))
            other = [self.tables.types.index(types.others[key]) for key in self.tables.others.keys]
            yield (
                quant,
                self.search.priced(
                    np.full(shape, last), gate_up, down, np.array(other, dtype=np.int64)
                ),
            )

    def _indices(self, rows: Any) -> Indices:
        types = self.tables.types
        return np.array(
            [[types.index(name) for name in rows[table.layer]] for table in self.tables.experts]
        )


def joint_pricer(checkpoint: Checkpoint, spec: PlanSpec) -> Pricer:
    """Of plans whose experts may have no neurons, where the file can hold such."""
    target = spec.target
    assert isinstance(target.exporter, Mixer)
    places = target.exporter.rules(target.options.layout or "").holds_empty
    return Pricer(checkpoint, target, keeps_places=places)


def joins(spec: PlanSpec, errors: RoundingErrors, statistics: Statistics | None) -> bool:
    """Whether types and widths are chosen together: as `may_join` says, where such files were
    measured and the statistics know what rounding costs."""
    target, options = spec.target, spec.options
    if statistics is None or not statistics.has_rounding or not errors.groups:
        return False
    same = errors.conditions.holds(target.exporter.format, options.imatrix, options.tensor_types)
    return may_join(spec) and same


def may_join(spec: PlanSpec) -> bool:
    """Whether types and widths are to be chosen together once what rounding does is measured: for
    the default method. Not to refine, which measures cuts alone."""
    options = spec.options
    plain = options.ranking in (None, "global") and not (
        options.guards or options.tilt or options.refine
    )
    return can_mix(spec.target) and spec.method.probed and plain


def can_mix(target: Target) -> bool:
    """Whether tensors of the target's files may be given types one by one."""
    writer, layout = target.exporter, target.options.layout or ""
    return isinstance(writer, Mixer) and writer.rules(layout).mixes


def mixable(checkpoint: Checkpoint, spec: PlanSpec) -> tuple[str, ...]:
    """The types that tensors may be given one by one, the most precise first: what the device runs,
    from its default down."""
    target, config = spec.target, checkpoint.config
    assert isinstance(target.exporter, Mixer)
    mixer, profile = target.exporter, target.profile

    def of(quant: str) -> frozenset[str]:
        return mixer.types_of(config, ExportOptions(quant, imatrix=True)).names

    own_format = target.exporter.format == profile.format
    runs = profile.tensor_types if own_format else target.exporter.quants
    every = mixer.mixed_types
    default = profile.default_tensor_type if own_format else target.exporter.default_quant
    first = min(every.index(name) for name in of(default))
    if set(target.exporter.quants) <= set(runs):
        return every[first:]
    named = frozenset[str]().union(*map(of, runs))
    allowed = named | {mixer.legal_type(name, 32) for name in named}
    return tuple(name for name in every[first:] if name in allowed)
