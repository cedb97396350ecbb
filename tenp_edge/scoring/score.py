"""What a score is, and what equations share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tenp_edge.errors import UserError

if TYPE_CHECKING:  # the command line's help is made of the tables: no torch before it is needed
    import torch

    from tenp_edge.calibration.statistics import LayerStatistics
    from tenp_edge.calibration.storage import Statistics

    WeightNorms = Mapping[str, torch.Tensor]  # WEIGHT_NORMS -> float64 [experts, width]
    Equation = Callable[[LayerStatistics, WeightNorms], torch.Tensor]

Needs = Literal["tokens", "gradients", "elimination", "weights", "seed"]


@dataclass(frozen=True)
class Score:
    """One way to say what an expert or a neuron is worth.

    ``equation``: of one layer's sums over one domain and its weights' norms, float64 [experts] or
    [experts, width]; None where nothing is computed. ``needs``: what it is read from: "tokens" (the
    sums of any calibration), "gradients" (those of one with a backward pass), "elimination" (the
    order in which the calibration cut neurons together), "weights" (no text), "seed" (drawn).
    ``comparable``: whether neurons of different experts can be compared by it, not only those of
    one. ``is_loss``: whether it counts in the unit of predicted losses, so that what the norms
    promise can be added to it. ``about``: what it is, where there is no equation to say so.
    """

    name: str
    equation: Equation | None = None
    needs: Needs = "tokens"
    comparable: bool = True
    is_loss: bool = False
    about: str = ""

    @property
    def formula(self) -> str:
        """What it is, in a line."""
        text = self.about or (self.equation.__doc__ or "" if self.equation else "")
        return " ".join(text.split("\n\n")[0].split())

    def evaluate(self, stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
        """The equation's value on one domain's sums (any, for a score that needs weights alone):
        float64 [experts] or [experts, width], by which of the two it scores."""
        assert self.equation is not None, f"{self.name} is not computed from sums"
        return self.equation(stats, norms)

    def is_in(self, statistics: Statistics) -> bool:
        """Whether ``statistics`` have what the score needs."""
        kept = {
            "elimination": statistics.has_elimination,
            "gradients": statistics.has_gradients,
        }
        return kept.get(self.needs, True)

    def check(self, statistics: Statistics) -> None:
        """Raise UserError where ``statistics`` lack what the score needs."""
        if self.is_in(statistics):
            return
        if self.needs == "elimination":
            raise UserError(
                f"neuron-score {self.name}: the statistics have no joint order (they were merged, "
                "or are of an older version)",
                "calibrate again, or --set neuron-score=relative",
            )
        raise UserError(
            f"neuron-score {self.name} needs a backward pass, which this calibration left out",
            "tenp-edge calibrate MODEL --gradients -o WORK, the same as before otherwise",
        )


def neuron_norm_sq(norms: WeightNorms) -> torch.Tensor:
    """||gate_k||^2 + ||up_k||^2 + ||w_k||^2 of every neuron k, float64 [experts, width]; the first
    only where there is a gate."""
    first, *others = (norms[n] for n in ("gate_norm", "up_norm", "down_norm") if n in norms)
    return sum((other.square() for other in others), start=first.square())


def names(scores: Mapping[str, Score], gradients: bool = False) -> list[str]:
    """Of those that need a backward pass, or of the others."""
    return [name for name, score in scores.items() if (score.needs == "gradients") == gradients]


def table(*scores: Score) -> dict[str, Score]:
    return {score.name: score for score in scores}


def look_up(table: Mapping[str, Score], name: str, knob: str) -> Score:
    if name not in table:
        raise UserError(f"--set {knob}={name} is not known", f"--set {knob}={'|'.join(table)}")
    return table[name]
