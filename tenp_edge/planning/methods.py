"""What a method is: one table, for `plan`, `refine` and `compare`.

A method turns a budget of neurons into widths. Its row says by which allocator, by which scores,
what it needs, and what is tried when it is refined. A new method is a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tenp_edge.calibration.elimination import ORDER_PRIORS
from tenp_edge.calibration.storage import Statistics
from tenp_edge.errors import UserError
from tenp_edge.models import ModelConfig
from tenp_edge.planning.allocation import Shape, Space
from tenp_edge.planning.allocators import (
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
    shapes,
)
from tenp_edge.planning.score_tables import Evidence, Scores
from tenp_edge.planning.spec import DEFAULT_PROTECTION, Knobs
from tenp_edge.scoring.expert_scores import expert_score
from tenp_edge.scoring.neuron_scores import neuron_score
from tenp_edge.scoring.regularisation import NO_INSURANCE, PROTECTION

Changes = dict[str, Any]
Axes = list[list[Changes]]
Build = Callable[[Space, ModelConfig, Evidence | None, Knobs], Allocator]


@dataclass(frozen=True)
class Method:
    """One row. ``build``: its allocator, without evidence too unless it ``needs_statistics``;
    ``allocation``: what plans call the form of its widths.

    ``neuron_scores``: the default is the first that the statistics can give; with
    ``shared_ranking`` neurons compete across experts; ``protects``: --protect is for it.
    ``compares``: widths come from comparing neurons' scores, not losses.
    ``draft``: the method that stands in while there are no scores; ``one_width``: the one where a
    file holds a single width. ``shaped``: alpha and the trapezoid are chosen by predicted loss.
    ``enough``: the share of the neurons that must stay for a more precise type to be taken.
    ``probed``: the way that measured best on held-out text is taken (`probes`); ``repaired``: the
    weights that stay are refitted unless told otherwise. ``axes``: what refining tries, in this
    order, for a plan that keeps a given share.
    """

    name: str
    allocation: str
    build: Build
    axes: Callable[[float], Axes] = lambda keep: []
    neuron_scores: tuple[str, ...] = ("enp",)
    shared_ranking: bool = False
    compares: bool = False
    protects: bool = False
    needs_statistics: bool = False
    draft: str | None = None
    one_width: str | None = None
    shaped: bool = False
    enough: float = 0.85
    probed: bool = False
    repaired: bool = False

    def allocator(
        self, space: Space, config: ModelConfig, evidence: Evidence | None, knobs: Knobs
    ) -> Allocator:
        """Before the size is known: a trapezoid in the paper's shape. Raises UserError where the
        method needs scores and there are none."""
        if evidence is None and self.needs_statistics:
            raise UserError(
                f"--method {self.name} ranks neurons and needs calibration",
                "--calibration WORK (tenp-edge calibrate), or --method tenp",
            )
        return self.build(space, config, evidence, knobs)

    def at_size(
        self, first: Allocator, evidence: Evidence | None, knobs: Knobs, neurons: int
    ) -> tuple[Allocator, Choice | None]:
        """``first``, or for a trapezoid the alpha and shape of the least predicted loss at
        ``neurons``."""
        whole = evidence is None or neurons == evidence.space.total_neurons
        if not self.shaped or evidence is None or whole:
            return first, None
        assert isinstance(first, Tenp)
        candidates = [first.shape, *shapes(knobs.shallow, knobs.deep, knobs.middle)]
        choice = choose_trapezoid(first, evidence, neurons, candidates)
        share, pinned = choice.alpha_share, knobs.whole_share
        return Tenp(evidence.space, evidence, choice.shape, share, pinned), choice

    def scores(self, knobs: Knobs, statistics: Statistics, seed: int) -> Scores:
        """The scores it sees ``statistics`` by: those that ``knobs`` name, or its own."""
        usable = [name for name in self.neuron_scores if neuron_score(name).is_in(statistics)]
        protection = knobs.protect or DEFAULT_PROTECTION
        return Scores(
            knobs.expert_score,
            knobs.neuron_score or usable[0],
            seed,
            shared_ranking=self.shared_ranking,
            insurance=PROTECTION[protection] if self.protects else NO_INSURANCE,
        )

    def check(self, knobs: Knobs) -> None:
        """Raise UserError for a score that is not known or that the method cannot use."""
        expert_score(knobs.expert_score)
        name = knobs.neuron_score
        if name is not None and not neuron_score(name).comparable and self.compares:
            raise UserError(
                f"neuron-score {name} orders the neurons of an expert; --method {self.name} "
                "compares those of all experts",
                f"--method adaptive --set neuron-score={name}",
            )


# -- allocators ------------------------------------------------------------------------------------


def _trapezoid(
    space: Space, config: ModelConfig, evidence: Evidence | None, knobs: Knobs
) -> Allocator:
    return Tenp(space, evidence, pinned_shape(knobs), PAPER_SHARE, knobs.whole_share)


def _uniform(
    space: Space, config: ModelConfig, evidence: Evidence | None, knobs: Knobs
) -> Allocator:
    return Uniform(space)


def _removal(
    space: Space, config: ModelConfig, evidence: Evidence | None, knobs: Knobs
) -> Allocator:
    return Drop(space, config, evidence)


def _by_score(
    space: Space, config: ModelConfig, evidence: Evidence | None, knobs: Knobs
) -> Allocator:
    assert evidence is not None, "free widths are ranked by scores"
    return Free(space, evidence, _rules(knobs, by_loss=False))


def _by_loss(
    space: Space, config: ModelConfig, evidence: Evidence | None, knobs: Knobs
) -> Allocator:
    """Without statistics a trapezoid of the same size stands in."""
    if evidence is None:
        return _trapezoid(space, config, evidence, knobs)
    return Free(space, evidence, _rules(knobs, by_loss=True))


def _rules(knobs: Knobs, by_loss: bool) -> FreeRules:
    return FreeRules(
        by_loss=by_loss,
        ranking=knobs.ranking or "global",
        shape=pinned_shape(knobs),
        tilt=knobs.tilt or 0.0,
        unit=knobs.unit or 0.0,
        guards=knobs.guards,
    )


def pinned_shape(knobs: Knobs) -> Shape:
    """The paper's shape with what is pinned."""
    return Shape(
        PAPER_SHAPE.shallow if knobs.shallow is None else knobs.shallow,
        PAPER_SHAPE.deep if knobs.deep is None else knobs.deep,
        PAPER_SHAPE.middle if knobs.middle is None else knobs.middle,
    )


# -- what refining tries ---------------------------------------------------------------------------


def _each(name: str, *values: Any) -> list[Changes]:
    return [{name: value} for value in values]


_SCORES = ("relative", "energy", "camera-p")


def _trapezoid_axes(keep: float) -> Axes:
    ends = ((1.0, 2.0), (1.0, 1.0), (2.0, 1.0), (1.0, 3.0), (3.0, 1.0))
    slopes = [{"shallow": start, "deep": end} for start, end in ends]
    shares = (round(share * keep, 4) for share in (0.25, 0.375, 0.5, 0.625, 0.75))
    return [slopes, _each("whole_share", *shares), _each("middle", 1.0, 0.5, 2.0)]


def _loss_axes(keep: float) -> Axes:
    return [
        _each("unit", 0.0, 0.5, 1.0, 1.5, 2.0),
        _each("ranking", "global", "coverage", "layer"),
        _each("tilt", 0.0, -1.0, -0.5, 0.5, 1.0),
        _each("neuron_score", *ORDER_PRIORS, *_SCORES),
    ]


def _score_axes(keep: float) -> Axes:
    return [_each("neuron_score", *_SCORES), _each("ranking", "global", "coverage", "layer")]


def _uniform_axes(keep: float) -> Axes:
    return [_each("neuron_score", "enp", "enp-abs", "energy", "camera-p")]


# -- the table -------------------------------------------------------------------------------------

METHODS = {
    method.name: method
    for method in (
        Method("tenp", "trapezoid", _trapezoid, _trapezoid_axes, one_width="enp", shaped=True),
        Method("enp", "uniform", _uniform, _uniform_axes),
        Method("drop", "removal", _removal),
        Method(
            "free",
            "free",
            _by_score,
            _score_axes,
            neuron_scores=("energy",),
            shared_ranking=True,
            compares=True,
            needs_statistics=True,
            draft="tenp",
            one_width="enp",
        ),
        Method(
            "adaptive",
            "free",
            _by_loss,
            _loss_axes,
            neuron_scores=("joint", "relative"),
            shared_ranking=True,
            protects=True,
            one_width="enp",
            enough=0.65,
            probed=True,
            repaired=True,
        ),
    )
}


def method_named(name: str) -> Method:
    """Raises UserError for a name that is not known."""
    if name not in METHODS:
        raise UserError(f"--method {name} is not known", f"--method {'|'.join(METHODS)}")
    return METHODS[name]
