"""Expert scores, [experts]: their equations over calibration sums. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenp_edge.scoring.score import Score, look_up, neuron_norm_sq, table

if TYPE_CHECKING:
    import torch

    from tenp_edge.calibration.statistics import LayerStatistics
    from tenp_edge.scoring.score import WeightNorms


def tenp(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of g ||y|| (1 - cos(x, y)): TENP, arXiv 2606.09885.

    float64 [experts], in the unit of ||y||, a sum over tokens.
    """
    return stats["tenp"]


def frequency(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """|T_e|: how often the router chose the expert.

    float64 [experts], tokens.
    """
    return stats["tokens"]


def gate(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of g: the soft count of SEER-MoE, arXiv 2404.05089.

    float64 [experts], tokens weighted by their gates.
    """
    return stats["gate"]


def ean(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of ||y||: expert activation norm, the baseline of arXiv 2510.13999.

    float64 [experts], in the unit of ||y||, a sum over tokens.
    """
    return stats["output_norm"]


def reap(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """mean over T_e of g ||y||: REAP, arXiv 2510.13999.

    float64 [experts], in the unit of ||y||; 0 without tokens.
    """
    return stats["gated_norm"] / stats["tokens"].clamp_min(1)


def man(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """mean over T_e of ||y||: MAN, arXiv 2606.15716.

    float64 [experts], in the unit of ||y||; 0 without tokens.
    """
    return stats["output_norm"] / stats["tokens"].clamp_min(1)


def msan(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """mean over T_e of ||y||^2: MSAN, arXiv 2606.15716.

    float64 [experts], in the unit of ||y||^2; 0 without tokens.
    """
    return stats["output_norm_sq"] / stats["tokens"].clamp_min(1)


def easy_ep(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of g ||y|| max(0, 1 - cos(h, h + all routed outputs)): arXiv 2504.06792.

    float64 [experts], in the unit of ||y||, a sum over tokens.
    """
    return stats["easy_ep"]


def gated_norm(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of g ||y||: TENP's score without its direction term.

    float64 [experts], in the unit of ||y||, a sum over tokens.
    """
    return stats["gated_norm"]


def tenp_residual(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """sum over T_e of g ||y|| (1 - cos(h, h + g y)): TENP's score on the residual stream.

    float64 [experts], in the unit of ||y||, a sum over tokens.
    """
    return stats["tenp_residual"]


def expert_magnitude(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """Frobenius norm of the expert's matrices; no data.

    float64 [experts], in the unit of the weights.
    """
    return neuron_norm_sq(norms).sum(dim=-1).sqrt()


EXPERT_SCORES = table(
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


def expert_score(name: str) -> Score:
    """Raises UserError for a name that is not known."""
    return look_up(EXPERT_SCORES, name, "expert-score")
