"""What is compared: a table of names, each with how it spends a budget of neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

import torch

from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import CompressionPlan, ExpertKey, Widths
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.overlay import Mended
from tenp_edge.errors import UserError
from tenp_edge.evaluation.comparison.baseline_scores import (
    aimer_scores,
    best_experts,
    coverage_widths,
    mone_scores,
)
from tenp_edge.evaluation.comparison.candidates import Candidate, Compensated, Masked
from tenp_edge.evaluation.variants import Planned
from tenp_edge.planning.budget.allocation import Shape
from tenp_edge.planning.budget.allocators import (
    PAPER_SHAPE,
    Free,
    FreeRules,
    Tenp,
    allocator_of,
    at_size,
)
from tenp_edge.planning.measured.probes import best_way
from tenp_edge.planning.measured.trials import Trial
from tenp_edge.planning.memory.pricing import draft
from tenp_edge.planning.options.methods import METHODS as PLANNED
from tenp_edge.planning.options.spec import DEFAULT_METHOD, Knobs, PlanOptions
from tenp_edge.planning.scores.tables import Evidence, Scores, scores_of
from tenp_edge.planning.space import Space
from tenp_edge.recovery.recover import MendRules
from tenp_edge.scoring.expert_scores import EXPERT_SCORES
from tenp_edge.scoring.neuron_scores import NEURON_SCORES

Mend = Callable[[CompressionPlan, MendRules], Mended]


class Case:
    """One calibration of one model: what a method builds from.

    ``mend``: repairs and heals what a plan leaves, on the text of this calibration; ``trials``:
    what was measured on text held out from it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        statistics: Statistics,
        width_multiple: int,
        seed: int,
        mend: Mend | None = None,
        trials: Sequence[Trial] = (),
    ) -> None:
        config = checkpoint.config
        self.checkpoint, self.statistics, self.seed = checkpoint, statistics, seed
        self.mend, self.trials = mend, trials
        self.space = Space(
            config.moe_layers, config.num_experts, config.moe_intermediate_size, width_multiple
        )
        self._evidence: dict[Scores, Evidence] = {}

    def seen_by(self, scores: Scores) -> Evidence:
        """The statistics by these scores, made once."""
        if scores not in self._evidence:
            self._evidence[scores] = Evidence(self.statistics, self.space, scores)
        return self._evidence[scores]

    def evidence(self, expert: str = "tenp", neuron: str = "enp", shared: bool = False) -> Evidence:
        """The same by names; ``shared``: neurons compete across experts."""
        return self.seen_by(Scores(expert, neuron, self.seed, shared_ranking=shared))


@dataclass(frozen=True)
class Cut:
    """What a method made of a budget. ``kept``: the share of the routed-expert parameters that
    are left; ``stored``: the share of their bytes that a file needs; ``active_ratio``: R_active."""

    candidate: Candidate
    kept: float
    stored: float
    active_ratio: float | None
    predicted_loss: float | None = None


Build = Callable[[Case, int], Cut]


@dataclass(frozen=True)
class Contender:
    """A row of the table. ``build`` cuts a case to a number of neurons; ``sets``: where it is
    listed; ``needs_gradients``: a backward pass; ``mends``: the calibration's text (`Case.mend`).
    """

    name: str
    build: Build
    sets: tuple[str, ...]
    needs_gradients: bool = False
    mends: bool = False


# -- plans -----------------------------------------------------------------------------------------


def planned(case: Case, evidence: Evidence, widths: Widths) -> Cut:
    """The plan of ``widths`` with the best neurons by ``evidence``."""
    plan = replace(draft(case.checkpoint, widths), retained=evidence.retained(widths))
    kept, active = plan.keep_ratio, evidence.active_ratio(widths, plan.full_width)
    return Cut(Planned(plan), kept, kept, active, evidence.predicted_loss(widths))


def as_planned(method: str, **knobs: Any) -> Build:
    """As ``plan --method`` with these knobs, at the same number of neurons."""
    row, chosen = PLANNED[method], Knobs(**knobs)

    def build(case: Case, neurons: int) -> Cut:
        evidence = case.seen_by(scores_of(row, chosen, case.statistics, case.seed))
        first = allocator_of(row, case.space, case.checkpoint.config, evidence, chosen)
        allocator, _ = at_size(row, first, evidence, chosen, neurons)
        return planned(case, evidence, allocator.widths(neurons))

    return build


def trapezoid(
    alpha_share: float = 0.5, shape: Shape = PAPER_SHAPE, expert: str = "tenp", neuron: str = "enp"
) -> Build:
    """TENP: round(alpha E) experts whole, alpha = ``alpha_share`` rho, the others beta wide."""

    def build(case: Case, neurons: int) -> Cut:
        evidence = case.evidence(expert, neuron)
        # Not quite alpha = rho: the others need their narrowest width.
        space, min_width = case.space, case.space.legal_widths[0]
        max_whole = (neurons - space.total_experts * min_width) // (space.full - min_width)
        alpha = min(alpha_share * neurons / space.total_neurons, max_whole / space.total_experts)
        allocator = Tenp(space, evidence, shape, alpha_share, whole_share=max(alpha, 0.0))
        return planned(case, evidence, allocator.widths(neurons))

    return build


def default(case: Case, neurons: int) -> Cut:
    """As ``plan`` does by default: in the way that measured best near this size."""
    way = best_way(case.trials, PlanOptions(), neurons / case.space.total_neurons)
    return as_planned(DEFAULT_METHOD, **way)(case, neurons)


def aimer(case: Case, neurons: int) -> Cut:
    """Whole experts removed by the shape of their weights alone."""

    def score(layer: int) -> torch.Tensor:
        return aimer_scores(case.checkpoint, layer)

    widths = best_experts(case.checkpoint, case.space, neurons, score)
    return planned(case, case.evidence(), widths)


def slimming(case: Case, neurons: int) -> Cut:
    """MoE-Slimming: first-order Taylor, the same share of the score kept in every layer."""
    evidence = case.evidence(neuron="taylor", shared=True)
    return planned(case, evidence, coverage_widths(evidence, "taylor", case.space, neurons))


# -- more than plans -------------------------------------------------------------------------------


def mone(case: Case, neurons: int) -> Cut:
    """MoNE: experts of little fluctuation and gate become their mean output vector."""

    def score(layer: int) -> torch.Tensor:
        return mone_scores(case.checkpoint, case.statistics, layer)

    widths = best_experts(case.checkpoint, case.space, neurons, score)
    retained = {
        (layer, expert): torch.arange(width)
        for layer, row in widths.items()
        for expert, width in enumerate(row)
    }
    return _compensated(case, retained, widths)


def flap_with_bias(case: Case, neurons: int) -> Cut:
    """FLAP: its score over all neurons of a layer, and a bias for the mean of what was cut."""
    evidence = case.evidence(neuron="flap", shared=True)
    widths = Free(case.space, evidence, FreeRules(ranking="layer")).widths(neurons)
    return _compensated(case, evidence.retained(widths), widths)


def _compensated(case: Case, retained: Mapping[ExpertKey, torch.Tensor], widths: Widths) -> Cut:
    """A vector of the hidden size for each cut expert is as large as a third of a neuron."""
    space = case.space
    kept = sum(map(sum, widths.values())) / space.total_neurons
    cut = sum(width < space.full for row in widths.values() for width in row)
    stored = kept + cut / 3 / space.total_neurons
    return Cut(Compensated(retained, case.statistics), kept, stored, _active_ratio(case, widths))


def _active_ratio(case: Case, widths: Widths) -> float | None:
    """R_active where an expert of no width is still chosen."""
    kept = full = 0.0
    for layer, layer_evidence in case.evidence().layers.items():
        kept += float((layer_evidence.tokens * torch.tensor(widths[layer])).sum())
        full += float(layer_evidence.tokens.sum()) * case.space.full
    return kept / full if full else None


def wanda_rows(case: Case, neurons: int) -> Cut:
    """Unstructured Wanda: as many parameters left, but no byte saved in a dense format."""
    keep = neurons / case.space.total_neurons
    return Cut(Masked(keep, case.statistics), keep, 1.0, keep)


def mended(base: Build, rules: MendRules) -> Build:
    """What ``base`` cuts, repaired or healed: as many bytes, other weights."""

    def build(case: Case, neurons: int) -> Cut:
        cut = base(case, neurons)
        assert isinstance(cut.candidate, Planned) and cut.candidate.plan is not None
        assert case.mend is not None, "methods that mend need the calibration's text"
        plan = cut.candidate.plan
        return replace(cut, candidate=Planned(plan, case.mend(plan, rules)))

    return build


# -- the table -------------------------------------------------------------------------------------


def _table() -> Iterator[Contender]:
    """Every published method in its own unit."""
    both = ("table", "short")
    yield Contender("tenp", trapezoid(), ("table", "short", "claims"))
    yield Contender("tenp-chosen", as_planned("tenp"), both)
    yield Contender("enp", as_planned("enp"), ("table", "short", "claims"))
    yield Contender("adaptive", default, both)
    yield Contender("adaptive-uninsured", as_planned("adaptive"), ("table",))
    yield Contender("adaptive-insured", as_planned("adaptive", protect="much"), ("table",))
    yield Contender("adaptive-single", as_planned("adaptive", neuron_score="relative"), ("table",))
    insured = as_planned("adaptive", neuron_score="joint-insured")
    yield Contender("adaptive-joint-insured", insured, ("table",))
    for ranking in ("layer", "coverage"):
        yield Contender(f"adaptive-{ranking}", as_planned("adaptive", ranking=ranking), ("table",))
    for unit in (0.5, 1.0, 1.5, 2.0):
        yield Contender(f"adaptive-unit-{unit:g}", as_planned("adaptive", unit=unit), ("table",))
    yield Contender("free", as_planned("free"), both)
    yield Contender("random", as_planned("enp", neuron_score="random"), both)
    yield Contender("wanda-rows", wanda_rows, both)
    for expert in EXPERT_SCORES:
        short = expert in ("easy-ep", "reap", "frequency", "gate", "random", "tenp")
        build = as_planned("drop", expert_score=expert)
        yield Contender(f"drop-{expert}", build, both if short else ("table",))
    yield Contender("drop-aimer", aimer, ("table",))
    yield Contender("mone", mone, both)
    for score in NEURON_SCORES.values():
        for ranking in ("layer", "global"):
            usual = (score.name, ranking) == ("energy", "global")
            if score.comparable and score.needs != "seed" and not usual:
                name = f"{ranking}-{score.name}"
                build = as_planned("free", neuron_score=score.name, ranking=ranking)
                short = name in ("global-camera-p", "global-heapr", "layer-flap")
                backward = score.needs == "gradients"
                yield Contender(name, build, both if short else ("table",), backward)
    yield Contender("coverage-taylor", slimming, both, True)
    yield Contender("layer-flap-bias", flap_with_bias, both)
    yield from _mended()


def _mended() -> Iterator[Contender]:
    """Weights that stay are changed after the cut."""
    repair = MendRules(repair=True)
    rows: tuple[tuple[str, Build, MendRules], ...] = (
        ("adaptive+repair", default, repair),
        ("tenp+repair", trapezoid(), repair),
        ("adaptive+repair+heal-routers", default, replace(repair, heal="routers")),
        ("adaptive+heal-routers", default, MendRules(repair=False, heal="routers")),
        ("adaptive+repair+heal-norms", default, replace(repair, heal="norms")),
    )
    for name, base, rules in rows:
        sets = ("mended", "table", "short") if name == "adaptive+repair" else ("mended", "table")
        yield Contender(name, mended(base, rules), sets, mends=True)


def _claims() -> Iterator[Contender]:
    """What the paper claims, one change at a time from TENP as published."""
    sets = ("claims",)
    for score in ("gated-norm", "tenp-residual", "easy-ep", "frequency", "gate", "reap", "random"):
        yield Contender(f"tenp-expert-{score}", trapezoid(expert=score), sets)
    for score in ("enp-abs", "energy", "camera-p", "random"):
        yield Contender(f"tenp-neuron-{score}", trapezoid(neuron=score), sets)
    for shallow, deep in ((2.0, 1.0), (1.5, 1.0), (1.0, 1.0), (1.0, 1.5)):
        name = f"tenp-slope{deep - shallow:+g}"
        yield Contender(name, trapezoid(shape=Shape(shallow, deep)), sets)
    for name, middle in (("u", 0.5), ("hump", 2.0)):
        yield Contender(f"tenp-{name}", trapezoid(shape=Shape(1, 1, middle)), sets)
    for share in (0.0, 0.25, 0.75, 1.0):
        yield Contender(f"tenp-alpha-{share:g}", trapezoid(alpha_share=share), sets)
    for neuron in NEURON_SCORES.values():
        if neuron.name not in ("enp", "random"):
            build = as_planned("enp", neuron_score=neuron.name)
            backward = neuron.needs == "gradients"
            yield Contender(f"uniform-{neuron.name}", build, ("uniform",), backward)


METHODS = {method.name: method for method in (*_table(), *_claims())}
SETS = ("short", "table", "claims", "uniform", "mended", "all")


def choose_methods(wanted: Sequence[str]) -> list[Contender]:
    """Methods by name, by pattern ("drop-*") or by set, in the table's order, each once."""
    chosen = set()
    for word in wanted:
        names = {
            name
            for name, method in METHODS.items()
            if word == "all" or word in method.sets or fnmatchcase(name, word)
        }
        if not names:
            near = get_close_matches(word, METHODS, n=3, cutoff=0.5) or list(METHODS)[:3]
            raise UserError(
                f"--method {word} is not known",
                f"a set: {', '.join(SETS)}; or a method such as {', '.join(near)}; "
                "docs/method.md lists them",
            )
        chosen |= names
    return [method for name, method in METHODS.items() if name in chosen]
