"""Expert and neuron scores: pure functions of the calibration sums.

Notation as in `statistics`: for a routed expert with tokens T_e, m [tokens, width] is its
activation, y = m W_down^T its output, g its gate after normalisation and scaling, x its input, h
the residual stream; w_k is column k of W_down. A higher score means: keep. Scores of several
calibration domains are L2-normalised (an expert score over the layer's experts, a neuron score
over the expert's neurons) and added, so that a domain with more text does not outvote the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from tenp_edge.errors import UserError
from tenp_edge.joint import ORDER_PRIORS, prior
from tenp_edge.statistics import GROWTH_SUM, WEIGHT_NORMS, LayerStatistics, Statistics

WeightNorms = Mapping[str, torch.Tensor]
Score = Callable[[LayerStatistics, WeightNorms], torch.Tensor]
CAMERA_ALPHA = 0.9
JOINT, RELATIVE = "joint", "relative"
_EPSILON = 1e-30


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


def joint(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """Place in the order in which neurons are best cut together (`joint.eliminate`), best highest.

    Cross terms count: of two neurons that say the same, one is cheap. `neuron_scores` reads it for
    all domains at once.
    """
    raise AssertionError("the joint order is stored, not computed")


def neuron_magnitude(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    """L2 norm of the neuron's gate row, up row and down column together; no data."""
    return _neuron_norm_sq(norms).sqrt()


def _neuron_norm_sq(norms: WeightNorms) -> torch.Tensor:
    return norms["gate_norm"].square() + norms["up_norm"].square() + norms["down_norm"].square()


def _random(stats: LayerStatistics, norms: WeightNorms) -> torch.Tensor:
    raise AssertionError("random scores are drawn, not computed")


EXPERT_SCORES: dict[str, Score] = {
    "tenp": tenp,
    "frequency": frequency,
    "gate": gate,
    "ean": ean,
    "reap": reap,
    "man": man,
    "msan": msan,
    "easy-ep": easy_ep,
    "gated-norm": gated_norm,
    "tenp-residual": tenp_residual,
    "magnitude": expert_magnitude,
    "random": _random,
}
NEURON_SCORES: dict[str, Score] = {
    "enp": enp,
    "enp-abs": enp_abs,
    "enp-sum": enp_sum,
    "energy": energy,
    RELATIVE: relative,
    **dict.fromkeys(ORDER_PRIORS, joint),
    "camera-p": camera_p,
    "flap": flap,
    "wanda": wanda,
    "heapr": heapr,
    "heapr-sum": heapr_sum,
    "taylor": taylor,
    "magnitude": neuron_magnitude,
    "random": _random,
}
# An order inside each expert: experts cannot be compared by it, losses can (`cut_losses`).
ORDERS = tuple(ORDER_PRIORS)
DATA_FREE = ("magnitude", "random")
NEED_GRADIENTS = ("heapr", "heapr-sum", "taylor")


# -- over domains ----------------------------------------------------------------------------------


def expert_scores(statistics: Statistics, layer: int, score: str, seed: int = 0) -> torch.Tensor:
    """Scores of one layer's experts over all domains, float64 [experts].

    An expert that no token reached has no evidence, not a low score: `unreached` finds it.
    """
    function = _lookup(EXPERT_SCORES, score, "--expert-score")
    norms = statistics.weight_norms(layer)
    if score == "random":
        return _draw((norms["down_norm"].shape[0],), layer, seed, stream=0)
    if score in DATA_FREE:
        return function(LayerStatistics({}), norms)
    per_domain = (function(statistics.layer(d, layer), norms) for d in statistics.domains)
    return sum_of(value / value.norm().clamp_min(_EPSILON) for value in per_domain)


def neuron_scores(statistics: Statistics, layer: int, score: str, seed: int = 0) -> torch.Tensor:
    """Scores of one layer's neurons over all domains, float64 [experts, width].

    A domain that never reached an expert is skipped for it; an expert that none reached is
    ordered by the norms of its neurons.
    """
    function = _neuron_score(statistics, score)
    norms = statistics.weight_norms(layer)
    if score == "random":
        return _draw(tuple(norms["down_norm"].shape), layer, seed, stream=1)
    magnitude = neuron_magnitude(LayerStatistics({}), norms)
    if score in DATA_FREE:
        return magnitude
    if score in ORDERS:
        reached = tokens_routed(statistics, layer) > 0
        return torch.where(reached[:, None], joint_places(statistics, layer, score), magnitude)
    total, reached = torch.zeros_like(magnitude), torch.zeros(magnitude.shape[0], dtype=torch.bool)
    for domain in statistics.domains:
        stats = statistics.layer(domain, layer)
        value = function(stats, norms)
        here = stats["tokens"] > 0
        total += here[:, None] * value / value.norm(dim=-1, keepdim=True).clamp_min(_EPSILON)
        reached |= here
    return torch.where(reached[:, None], total, magnitude)


def ranking_scores(statistics: Statistics, layer: int, score: str, seed: int = 0) -> torch.Tensor:
    """Scores that compare neurons across experts and layers, float64 [experts, width].

    As `neuron_scores`, but a domain's score is divided by its tokens instead of being normalised
    inside each expert, which would make a neuron of an idle expert equal to one of a busy expert.
    """
    if score in DATA_FREE:
        return neuron_scores(statistics, layer, score, seed)
    function = _neuron_score(statistics, score)
    norms = statistics.weight_norms(layer)
    return sum_of(
        function(statistics.layer(domain, layer), norms) / domain_tokens(statistics, domain)
        for domain in statistics.domains
    )


def joint_places(statistics: Statistics, layer: int, score: str) -> torch.Tensor:
    """Width to 1, best first, in the order of `joint.eliminate`, float64 [experts, width]."""
    order = statistics.elimination(layer, score).order
    places = torch.arange(order.shape[1], 0, -1, dtype=torch.float64).expand(order.shape)
    return torch.empty_like(places).scatter_(1, order, places)


def cut_losses(statistics: Statistics, layer: int, order: torch.Tensor) -> torch.Tensor:
    """Predicted loss of keeping each expert's first w neurons of ``order``, w = 0 to the width.

    ``order``: [experts, width], best first; returns float64 [experts, width + 1]. The loss is the
    mean over tokens of ||what is cut||^2 / ||h'||^2 (see `relative`), averaged over the domains.
    With c_k = g m_k w_k / ||h'||, E ||sum c_k||^2 is the sum of E ||c_k||^2 over the cut neurons,
    plus cross terms. Of those the part along the expert's own output is known from the means
    rho_k = E <c_k, y> / ||y||: (sum rho_k)^2 - sum rho_k^2 over the share of tokens that reach the
    expert. It is what makes the last neurons of an expert dearer than their own energies.
    """
    norms = statistics.weight_norms(layer)
    parts = [
        _cut_losses(
            statistics.layer(domain, layer), norms, order, domain_tokens(statistics, domain)
        )
        for domain in statistics.domains
    ]
    return sum_of(parts) / len(parts)


def _cut_losses(
    stats: LayerStatistics, norms: WeightNorms, order: torch.Tensor, tokens: int
) -> torch.Tensor:
    single = tail_sums((relative(stats, norms) / tokens).gather(1, order))
    along = (stats["relative_projection"] / tokens / growth_of(stats).sqrt()).gather(1, order)
    share = (stats["tokens"] / tokens).clamp_min(_EPSILON)[:, None]
    cross = (tail_sums(along).square() - tail_sums(along.square())) / share
    total: torch.Tensor = single + cross.clamp_min(0)
    return total


def prior_losses(statistics: Statistics, layer: int) -> torch.Tensor:
    """What cutting each neuron would cost if text said nothing about it, float64 [experts, width].

    `joint.prior` of the layer's predicted losses of single neurons, averaged over the domains.
    """
    norms = statistics.weight_norms(layer)
    own = sum_of(
        relative(statistics.layer(domain, layer), norms) / domain_tokens(statistics, domain)
        for domain in statistics.domains
    ) / len(statistics.domains)
    return prior(own, *(norms[name] for name in WEIGHT_NORMS))


def stream_square(statistics: Statistics, layer: int) -> float:
    """||h'||^2 after the layer's block: what all neurons' energies are over what they are relative
    to the stream (`relative`), so it is the one that busy tokens see. 1 where nothing was routed.
    """
    sums = torch.stack(
        [ranking_scores(statistics, layer, score).sum() for score in ("energy", RELATIVE)]
    )
    return float(sums[0] / sums[1]) if bool((sums > 0).all()) else 1.0


def tail_sums(values: torch.Tensor) -> torch.Tensor:
    """[experts, width] -> [experts, width + 1]: the sum from each place on, 0 after the last."""
    tails = values.flip(-1).cumsum(-1).flip(-1)
    return torch.nn.functional.pad(tails, (0, 1))


def growth_of(stats: LayerStatistics) -> torch.Tensor:
    """||h'||^2 / ||h||^2 of an ordinary token: the block's growth of the residual stream."""
    total, count = stats[GROWTH_SUM]
    return torch.exp(total / count.clamp_min(1))


def tokens_routed(statistics: Statistics, layer: int) -> torch.Tensor:
    """Routed tokens of every expert over all domains, float64 [experts]."""
    return sum_of(statistics.layer(domain, layer)["tokens"] for domain in statistics.domains)


def domain_tokens(statistics: Statistics, domain: str) -> int:
    """Calibration tokens of a domain, at least 1."""
    return max(int(statistics.info["domains"][domain]["tokens"]), 1)


def sum_of(values: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of at least one tensor."""
    return torch.stack(list(values)).sum(dim=0)


def _neuron_score(statistics: Statistics, score: str) -> Score:
    function = _lookup(NEURON_SCORES, score, "--neuron-score")
    if score in ORDERS and not statistics.has_elimination:
        raise UserError(
            f"--neuron-score {score}: the statistics have no joint order (they were merged)",
            "calibrate again, or --neuron-score relative",
        )
    if score in NEED_GRADIENTS and not statistics.has_gradients:
        raise UserError(
            f"--neuron-score {score} needs a backward pass, which this calibration left out",
            "tenp-edge calibrate --gradients, the same as before otherwise",
        )
    return function


def _draw(shape: tuple[int, ...], layer: int, seed: int, stream: int) -> torch.Tensor:
    """Seeded uniform scores; ``stream`` keeps experts and neurons of a layer independent."""
    generator = torch.Generator().manual_seed((seed * 100003 + layer) * 2 + stream)
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _lookup(table: Mapping[str, Score], name: str, flag: str) -> Score:
    if name not in table:
        raise UserError(f"{flag} {name} is not known", f"{flag} {'|'.join(table)}")
    return table[name]
