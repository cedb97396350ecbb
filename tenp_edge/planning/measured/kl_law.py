"""What a predicted loss means in nats: a law of the model's own plans, or the bundled model's."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tenp_edge.planning.measured.rounding_errors import MixedCost
from tenp_edge.planning.measured.trials import Trial

# What was measured: plans that were only cut, or those of many widths and types.
Measured = Sequence[Trial] | Sequence[MixedCost]

# KL = exp(.38) loss^.84, fitted to 85 plans of the bundled model (nine shapes of plan, keep 0.3 to
# 0.75, KL .002 to .6): rank correlation .986, the logarithm's standard deviation .32. A plan that
# cuts what looks cheapest pays more than it promises, which is why the power is below 1.
_SCALE, POWER = 1.47, 0.84
_STEEPEST, _FLATTEST = 1.5, 0.4  # powers that a model's own plans may ask for
_SPREAD = 1.0  # of the logarithms of their losses, least standard deviation to tell a power


def predicted_kl(loss: float, measured: Measured = ()) -> float:
    """Nats per token for a predicted loss (`losses.cut_losses`).

    ``measured``: plans of this model; the law goes through the mean of their logarithms, with
    their own power where their losses lie far enough apart to tell one. Without them it is the
    bundled model's.
    """
    if loss <= 0:
        return 0.0
    scale, power = _fitted(_points(measured))
    return math.exp(scale + power * math.log(loss))


def loss_of_kl(kl: float, measured: Measured = ()) -> float:
    """The predicted loss that costs ``kl`` nats per token: `predicted_kl` the other way round."""
    if kl <= 0:
        return 0.0
    scale, power = _fitted(_points(measured))
    return math.exp((math.log(kl) - scale) / power)


def _points(measured: Measured) -> list[tuple[float, float]]:
    """(log loss, log KL) of the plans that lost something."""
    pairs = (
        (one.loss, one.kl) if isinstance(one, MixedCost) else (one.predicted_loss, one.mean_kl)
        for one in measured
    )
    return [(math.log(loss), math.log(kl)) for loss, kl in pairs if loss > 0 and kl > 0]


def _fitted(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """log KL = scale + power log loss through (log loss, log KL) of measured plans."""
    if not points:
        return math.log(_SCALE), POWER
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    spread = sum((loss - x) ** 2 for loss, _ in points)
    power = POWER
    if spread / len(points) >= _SPREAD**2:
        slope = sum((loss - x) * (kl - y) for loss, kl in points) / spread
        power = min(max(slope, _FLATTEST), _STEEPEST)
    return y - power * x, power


def together_kl(*kls: float) -> float:
    """Nats per token of independent errors at once: their losses add up, and KL is a power of that.

    Cuts and types on the bundled model (ten plans of both, in memory): within 6 %, where the plain
    sum says up to 16 % too much.
    """
    return float(sum(kl ** (1 / POWER) for kl in kls) ** POWER)
