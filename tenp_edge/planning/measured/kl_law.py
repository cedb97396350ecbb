"""What a predicted loss means in nats: a law of the model's own plans, or the bundled model's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from tenp_edge.planning.measured.rounding_errors import MixedCost
from tenp_edge.planning.measured.trials import Trial

# What was measured: plans that were only cut, or those of many widths and types.
Measured = Sequence[Trial] | Sequence[MixedCost]

# KL = exp(.38) loss^.84, fitted to 85 plans of the bundled model (nine shapes of plan, keep 0.3 to
# 0.75, KL .002 to .6): rank correlation .986, the logarithm's standard deviation .32. A plan that
# cuts what looks cheapest pays more than it promises, which is why the power is below 1.
_SCALE, POWER = 1.47, 0.84
_STEEPEST, _FLATTEST = 1.5, 0.4  # powers that a model's own plans may ask for
# After 32 to 64 tokens of one kind the power was 0.24 to 0.39, after 160 and more 0.55 to 1.11.
_OF_CHANCE = 0.5
_SPREAD = 1.0  # of the logarithms of their losses, least standard deviation to tell a power

# How far measured KL lies from the law, as a standard deviation of its logarithm: that of the plans
# above, which counts as this many plans of the model itself; and how far the power may be off.
_OFF, _OFF_COUNTS = 0.32, 4
_POWER_OFF = 0.15
# Of the mean over a text of a few sequences, where nothing was measured on one.
_TEXT_OFF = 0.25
# What repair, of which a plan does not know, may leave of it.
_REPAIRED = 0.5
_WITHIN = 1.645  # standard deviations to both sides: 90 % of a normal distribution


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


def is_of_chance(measured: Measured) -> bool:
    """Whether the ``measured`` plans cost far more than predicted the less they cut.

    So it is where a plan was fitted to a few tokens: they show no loss at all of neurons that other
    text needs, and what such a plan costs goes by how much it cuts.
    """
    slope = _slope(_points(measured))
    return slope is not None and slope < _OF_CHANCE


def loss_of_kl(kl: float, measured: Measured = ()) -> float:
    """The predicted loss that costs ``kl`` nats per token: `predicted_kl` the other way round."""
    if kl <= 0:
        return 0.0
    scale, power = _fitted(_points(measured))
    return math.exp((math.log(kl) - scale) / power)


def kl_range(
    loss: float, measured: Measured = (), on_text: Sequence[Trial] = ()
) -> tuple[float, float]:
    """Where the KL of a predicted loss lies in nine cases of ten, nats per token.

    Three things are unsure: how far a plan lies from the law, which the ``measured`` plans' own
    distances say; the law itself, the more the farther from those plans; and the text, twice, that
    they were measured on and that this plan will be. And repair may come. ``on_text``: plans with
    the KL of every sequence: their spread is what a bootstrap over the sequences would give. Over
    the calibration's there is none: its sums are not kept by sequence.
    """
    if loss <= 0:
        return 0.0, 0.0
    points = _points(measured)
    scale, power = _fitted(points)
    log = math.log(loss)
    middle = scale + power * log
    text = _text_off(on_text)
    off = _off(points, scale, power) + _law_off(points, log, text) + 2 * text**2
    aside = _WITHIN * math.sqrt(off)
    return _REPAIRED * math.exp(middle - aside), math.exp(middle + aside)


def _off(points: Sequence[tuple[float, float]], scale: float, power: float) -> float:
    """Variance of a plan's log KL about the law."""
    squares = sum((kl - scale - power * loss) ** 2 for loss, kl in points)
    count = max(len(points) - 1, 0)
    return (_OFF_COUNTS * _OFF**2 + squares) / (_OFF_COUNTS + count)


def _law_off(points: Sequence[tuple[float, float]], log: float, text: float) -> float:
    """Variance of the law at ``log``: its level by so many plans, its power by how far they lie
    apart, for ``text`` moves the KL of either end."""
    if not points:
        return 0.0
    losses = [loss for loss, _ in points]
    apart, away = max(losses) - min(losses), log - fmean(losses)
    power = _POWER_OFF**2 + (2 * (text / apart) ** 2 if apart else 0.0)
    return _OFF**2 / len(points) + power * away**2


def _text_off(trials: Sequence[Trial]) -> float:
    """Standard error of the logarithm of a mean over the sequences of the text."""
    errors = [
        stdev(one.sequence_kl) / (math.sqrt(len(one.sequence_kl)) * one.mean_kl)
        for one in trials
        if len(one.sequence_kl) > 1 and one.mean_kl > 0
    ]
    return fmean(errors) if errors else _TEXT_OFF


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
    slope = _slope(points)
    power = POWER if slope is None else min(max(slope, _FLATTEST), _STEEPEST)
    return y - power * x, power


def _slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Of (log loss, log KL), by least squares; None where losses do not lie far enough apart."""
    if not points:
        return None
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    spread = sum((loss - x) ** 2 for loss, _ in points)
    if spread / len(points) < _SPREAD**2:
        return None
    slope: float = sum((loss - x) * (kl - y) for loss, kl in points) / spread
    return slope


def together_kl(*kls: float) -> float:
    """Nats per token of independent errors at once: their losses add up, and KL is a power of that.

    Cuts and types on the bundled model (ten plans of both, in memory): within 6 %, where the plain
    sum says up to 16 % too much.
    """
    return float(sum(kl ** (1 / POWER) for kl in kls) ** POWER)
