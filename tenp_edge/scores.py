"""Expert and neuron scores: one table, and their equations over calibration sums. Pure.

Notation as in `statistics`: for a routed expert with tokens T_e, m [tokens, width] is its
activation, y = m W_down^T its output, g its gate after normalisation and scaling, x its input, h
the residual stream; w_k is column k of W_down. A higher score means: keep. `saliency` adds them up
over the calibration's domains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from tenp_edge.errors import UserError
from tenp_edge.joint import ORDER_PRIORS
from tenp_edge.statistics import GROWTH_SUM, LayerStatistics, Statistics

WeightNorms = Mapping[str, torch.Tensor]
Equation = Callable[[LayerStatistics, WeightNorms], torch.Tensor]
Needs = Literal["tokens", "gradients", "elimination", "weights", "seed"]
CAMERA_ALPHA = 0.9


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
        """The equation's value on one domain's sums (any, for a score that needs weights alone)."""
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
            "tenp-edge calibrate --gradients, the same as before otherwise",
        )


# -- experts: [experts] ----------------------------------------------------------------------------


def tenp(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of g ||y|| (1 - cos(x, y)): TENP, arXiv 2606.09885."""
    return stats["tenp"]


def frequency(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """|T_e|: how often the router chose the expert."""
    return stats["tokens"]


def gate(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of g: the soft count of SEER-MoE, arXiv 2404.05089."""
    return stats["gate"]


def ean(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of ||y||: expert activation norm, the baseline of arXiv 2510.13999."""
    return stats["output_norm"]


def reap(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """mean over T_e of g ||y||: REAP, arXiv 2510.13999."""
    return stats["gated_norm"] / stats["tokens"].clamp_min(1)


def man(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """mean over T_e of ||y||: MAN, arXiv 2606.15716."""
    return stats["output_norm"] / stats["tokens"].clamp_min(1)


def msan(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """mean over T_e of ||y||^2: MSAN, arXiv 2606.15716."""
    return stats["output_norm_sq"] / stats["tokens"].clamp_min(1)


def easy_ep(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of g ||y|| max(0, 1 - cos(h, h + all routed outputs)): arXiv 2504.06792."""
    return stats["easy_ep"]


def gated_norm(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of g ||y||: TENP's score without its direction term."""
    return stats["gated_norm"]


def tenp_residual(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of g ||y|| (1 - cos(h, h + g y)): TENP's score on the residual stream."""
    return stats["tenp_residual"]


def expert_magnitude(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """Frobenius norm of the expert's three matrices; no data."""
    return _neuron_norm_sq(norms).sum(dim=-1).sqrt()


# -- neurons: [experts, width] ---------------------------------------------------------------------


def enp(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """mean over T_e of m_k <w_k, y> / ||y||, signed: the ENP of TENP, arXiv 2606.09885."""
    return stats["projection"] / stats["tokens"].clamp_min(1)[:, None]


def enp_abs(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """mean over T_e of |m_k <w_k, y>| / ||y||: the absolute ablation of ENP."""
    return stats["abs_projection"] / stats["tokens"].clamp_min(1)[:, None]


def enp_sum(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of m_k <w_k, y> / ||y||: ENP weighted by how often the expert is used."""
    return stats["projection"]


def energy(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of (g m_k)^2 ||w_k||^2: the squared output that cutting k alone removes."""
    return stats["gated_activation_sq"] * norms["down_norm"].square()


def relative(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of (g m_k)^2 ||w_k||^2 / ||h'||^2, h' the residual stream after the block.

    The next norm divides by ||h'||, so this is the share of what later layers see that cutting k
    alone changes: it compares neurons of different depths, where `energy` counts in each layer's
    own unit. ||h'|| is taken as ||h|| times the layer's growth for an ordinary token: a token that
    the block itself makes massive counts with its length before, which guards the experts that do.
    """
    if GROWTH_SUM not in stats.sums:
        raise UserError(
            "the statistics are of an older version, without losses relative to the residual "
            "stream",
            "calibrate again, or --method free",
        )
    return stats["relative_activation_sq"] * norms["down_norm"].square() / growth_of(stats)


def camera_p(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """||w_k||^2 [(1 - a) ||g m_k||_2^2 + a ||g m_k||_inf^2], a = 0.9: arXiv 2508.02322."""
    mean_part = (1 - CAMERA_ALPHA) * stats["gated_activation_sq"]
    peak_part = CAMERA_ALPHA * stats["gated_activation_max"].square()
    return norms["down_norm"].square() * (mean_part + peak_part)


def flap(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """Var over T_e of m_k, times ||w_k||^2: FLAP, arXiv 2312.11983."""
    count = stats["tokens"].clamp_min(1)[:, None]
    variance = stats["activation_sq"] / count - (stats["activation"] / count).square()
    return variance.clamp_min(0) * norms["down_norm"].square()


def wanda(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """||m_k||_2 ||w_k||_2: structured Wanda, after arXiv 2306.11695."""
    return stats["activation_sq"].sqrt() * norms["down_norm"]


def heapr(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """mean m_k^2 times w_k^T M w_k, M the mean of dL/dy dL/dy^T over T_e: HEAPr, arXiv 2509.22299.

    w_k^T M w_k is the mean of (dL/dy . w_k)^2, so no hidden x hidden matrix is ever made.
    """
    count = stats["tokens"].clamp_min(1)[:, None]
    return stats["activation_sq"] / count * (stats["gradient_sq"] / count)


def heapr_sum(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """HEAPr's score times |T_e|: weighted by how often the expert is used."""
    return heapr(stats, norms) * stats["tokens"][:, None]


def taylor(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of |m_k dL/dm_k|: first-order Taylor, as in MoE-Slimming, arXiv 2606.18304."""
    return stats["taylor"]


def neuron_magnitude(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """L2 norm of the neuron's gate row, up row and down column together; no data."""
    return _neuron_norm_sq(norms).sqrt()


def _neuron_norm_sq(norms: WeightNorms) -> torch.Tensor:
    return norms["gate_norm"].square() + norms["up_norm"].square() + norms["down_norm"].square()


def growth_of(stats: LayerStatistics) -> torch.Tensor:
    """||h'||^2 / ||h||^2 of an ordinary token: the block's growth of the residual stream."""
    total, count = stats[GROWTH_SUM]
    return torch.exp(total / count.clamp_min(1))


# -- the tables ------------------------------------------------------------------------------------


def _table(*scores: Score) -> dict[str, Score]:
    return {score.name: score for score in scores}


EXPERT_SCORES = _table(
    Score("tenp", tenp),
    Score("frequency", frequency),
    Score("gate", gate),
    Score("ean", ean),
    Score("reap", reap),
    Score("man", man),
    Score("msan", msan),
    Score("easy-ep", easy_ep),
    Score("gated-norm", gated_norm),
    Score("tenp-residual", tenp_residual),
    Score("magnitude", expert_magnitude, needs="weights"),
    Score("random", needs="seed", about="drawn, by the seed"),
)
NEURON_SCORES = _table(
    Score("enp", enp),
    Score("enp-abs", enp_abs),
    Score("enp-sum", enp_sum),
    Score("energy", energy),
    Score("relative", relative, is_loss=True),
    *(
        Score(
            name,
            needs="elimination",
            comparable=False,
            about="place in the order in which neurons are best cut together (`joint.eliminate`), "
            f"best highest, with {weight:g} of the prior; of two that say the same, one is cheap",
        )
        for name, weight in ORDER_PRIORS.items()
    ),
    Score("camera-p", camera_p),
    Score("flap", flap),
    Score("wanda", wanda),
    Score("heapr", heapr, needs="gradients"),
    Score("heapr-sum", heapr_sum, needs="gradients"),
    Score("taylor", taylor, needs="gradients"),
    Score("magnitude", neuron_magnitude, needs="weights"),
    Score("random", needs="seed", about="drawn, by the seed"),
)


def expert_score(name: str) -> Score:
    """Raises UserError for a name that is not known."""
    return _lookup(EXPERT_SCORES, name, "expert-score")


def neuron_score(name: str) -> Score:
    """Raises UserError for a name that is not known."""
    return _lookup(NEURON_SCORES, name, "neuron-score")


def _lookup(table: Mapping[str, Score], name: str, knob: str) -> Score:
    if name not in table:
        raise UserError(f"--set {knob}={name} is not known", f"--set {knob}={'|'.join(table)}")
    return table[name]
