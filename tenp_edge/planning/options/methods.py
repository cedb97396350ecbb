"""What a method is: one table, for `plan`, `refine` and `compare`. Light: no torch here.

A method turns a budget of neurons into widths. Its row says what it is in a few words, by which
scores it sees the statistics, what it needs, and what is tried when it is refined; how its
allocator is built stands in `allocators.BUILDERS`. A new method is a row in each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenp_edge.calibration.order_priors import ORDER_PRIORS
from tenp_edge.errors import UserError
from tenp_edge.scoring.expert_scores import expert_score
from tenp_edge.scoring.neuron_scores import neuron_score

if TYPE_CHECKING:
    from tenp_edge.planning.options.spec import Knobs

Changes = dict[str, Any]
Axes = list[list[Changes]]


@dataclass(frozen=True)
class Method:
    """One row. ``about``: for the help; ``allocation``: what plans call the form of its widths;
    ``needs_statistics``: there is no allocator without.

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
    about: str
    allocation: str
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
        Method(
            "adaptive",
            "own width per expert, by predicted loss",
            "free",
            _loss_axes,
            neuron_scores=("joint", "relative"),
            shared_ranking=True,
            protects=True,
            one_width="enp",
            enough=0.65,
            probed=True,
            repaired=True,
        ),
        Method(
            "tenp",
            "trapezoid, as published",
            "trapezoid",
            _trapezoid_axes,
            one_width="enp",
            shaped=True,
        ),
        Method("enp", "one width for all", "uniform", _uniform_axes),
        Method(
            "free",
            "own widths by neuron scores",
            "free",
            _score_axes,
            neuron_scores=("energy",),
            shared_ranking=True,
            compares=True,
            needs_statistics=True,
            draft="tenp",
            one_width="enp",
        ),
        Method("drop", "whole experts removed", "removal"),
    )
}


def method_named(name: str) -> Method:
    """Raises UserError for a name that is not known."""
    if name not in METHODS:
        raise UserError(f"--method {name} is not known", f"--method {'|'.join(METHODS)}")
    return METHODS[name]
