"""Expert and neuron scores: one table, and their equations over calibration sums. Pure.

Notation as in `statistics`: for a routed expert with tokens T_e, m [tokens, width] is its
activation, y = m W_down^T its output, g its gate after normalisation and scaling, x its input, h
the residual stream; w_k is column k of W_down. A higher score means: keep. `saliency` adds them up
over the calibration's domains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenp_edge.calibration.order_priors import ORDER_PRIORS
from tenp_edge.scoring.score import Score, look_up, neuron_norm_sq, table

if TYPE_CHECKING:
    import torch

    from tenp_edge.calibration.statistics import LayerStatistics
    from tenp_edge.scoring.score import WeightNorms

CAMERA_ALPHA = 0.9


def enp(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """mean over T_e of m_k <w_k, y> / ||y||, signed: the ENP of TENP, arXiv 2606.09885.

    float64 [experts, width], in the unit of y; 0 without tokens.
    """
    return stats["projection"] / stats["tokens"].clamp_min(1)[:, None]


def enp_abs(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """mean over T_e of |m_k <w_k, y>| / ||y||: the absolute ablation of ENP.

    float64 [experts, width], in the unit of y; 0 without tokens.
    """
    return stats["abs_projection"] / stats["tokens"].clamp_min(1)[:, None]


def enp_sum(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of m_k <w_k, y> / ||y||: ENP weighted by how often the expert is used.

    float64 [experts, width], in the unit of y, a sum over tokens.
    """
    return stats["projection"]


def energy(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of (g m_k)^2 ||w_k||^2: the squared output that cutting k alone removes.

    float64 [experts, width], in the unit of ||y||^2, a sum over tokens.
    """
    return stats["gated_activation_sq"] * norms["down_norm"].square()


def relative(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of (g m_k)^2 ||w_k||^2 / ||h'||^2, h' the residual stream after the block.

    The next norm divides by ||h'||, so this is the share of what later layers see that cutting k
    alone changes: it compares neurons of different depths, where `energy` counts in each layer's
    own unit. ||h'|| is taken as ||h|| times the layer's growth for an ordinary token: a token that
    the block itself makes massive counts with its length before, which guards the experts that do.

    float64 [experts, width], no unit, a sum over tokens.
    """
    return stats["relative_activation_sq"] * norms["down_norm"].square() / stats.growth


def camera_p(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """||w_k||^2 [(1 - a) ||g m_k||_2^2 + a ||g m_k||_inf^2], a = 0.9: arXiv 2508.02322.

    float64 [experts, width], in the unit of ||y||^2.
    """
    mean_part = (1 - CAMERA_ALPHA) * stats["gated_activation_sq"]
    peak_part = CAMERA_ALPHA * stats["gated_activation_max"].square()
    return norms["down_norm"].square() * (mean_part + peak_part)


def flap(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """Var over T_e of m_k, times ||w_k||^2: FLAP, arXiv 2312.11983.

    float64 [experts, width], in the unit of ||y||^2; 0 without tokens.
    """
    count = stats["tokens"].clamp_min(1)[:, None]
    variance = stats["activation_sq"] / count - (stats["activation"] / count).square()
    return variance.clamp_min(0) * norms["down_norm"].square()


def wanda(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """||m_k||_2 ||w_k||_2: structured Wanda, after arXiv 2306.11695.

    float64 [experts, width], in the unit of y, a root of a sum over tokens.
    """
    return stats["activation_sq"].sqrt() * norms["down_norm"]


def heapr(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """mean m_k^2 times w_k^T M w_k, M the mean of dL/dy dL/dy^T over T_e: HEAPr, arXiv 2509.22299.

    w_k^T M w_k is the mean of (dL/dy . w_k)^2, so no hidden x hidden matrix is ever made.

    float64 [experts, width], in nats^2 (L is the loss in nats); 0 without tokens.
    """
    count = stats["tokens"].clamp_min(1)[:, None]
    return stats["activation_sq"] / count * (stats["gradient_sq"] / count)


def heapr_sum(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """HEAPr's score times |T_e|: weighted by how often the expert is used.

    float64 [experts, width], in nats^2.
    """
    return heapr(stats, norms) * stats["tokens"][:, None]


def taylor(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of |m_k dL/dm_k|: first-order Taylor, as in MoE-Slimming, arXiv 2606.18304.

    float64 [experts, width], in nats, a sum over tokens.
    """
    return stats["taylor"]


def neuron_magnitude(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """L2 norm of the neuron's gate row, up row and down column together; no data.

    float64 [experts, width], in the unit of the weights.
    """
    return neuron_norm_sq(norms).sqrt()


NEURON_SCORES = table(
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
            about="place in the order in which neurons are best cut together "
            "(`elimination.eliminate`), best highest, "
            f"with {weight:g} of the prior; of two that say the same, one is cheap",
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


def neuron_score(name: str) -> Score:
    """Raises UserError for a name that is not known."""
    return look_up(NEURON_SCORES, name, "neuron-score")
