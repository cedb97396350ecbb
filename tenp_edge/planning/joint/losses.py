"""What rounding a group of matrices costs one model beside cutting: measured, in the unit of cuts.

The sums predict the loss of rounding experts; what they leave out (errors that agree, tokens that
find another expert) is the same for all types of a role, more or less. Of the other matrices
nothing is predicted but that errors of one relative size cost the same in every layer. So every
group was rounded once and its KL measured (`evaluation.rounding`): read as a loss by the model's
own law (`kl_law`), it says by how much to multiply.

That law goes through plans that were only cut, as they cost all text, not only the calibrated kind
(`measured.all_text`): the more cutting costs, the less of it a rounding is worth, and the more
neurons stay. Where the calibration was so short that cuts cost by chance (`kl_law.is_of_chance`),
it says nothing of rounding, which fits no text: the bundled model's law is taken. And what the cuts
cost beside what was predicted of them is counted evenly for every neuron (`Factors.unseen`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from tenp_edge.calibration.statistics import ROUNDING
from tenp_edge.calibration.storage import Statistics
from tenp_edge.exporters.mixing import Mixer
from tenp_edge.planning.measured.all_text import on_all_text
from tenp_edge.planning.measured.kl_law import is_of_chance, loss_of_kl
from tenp_edge.planning.measured.rounding_errors import (
    EXPERT_GROUPS,
    GroupCost,
    MixedCost,
    RoundingErrors,
)
from tenp_edge.planning.measured.trials import Trial

# Of the sums' own prediction: a measurement further off is of text that hardly uses the experts.
_LEAST, _MOST = 1 / 64, 64.0


@dataclass(frozen=True)
class Factors:
    """``groups``: of the experts' what their predicted losses are multiplied by, of a role of other
    matrices the loss at a relative error of 1. ``unseen``: the loss of cutting all neurons that the
    calibration did not show."""

    groups: Mapping[str, float]
    unseen: float = 0.0


def measured_factors(
    errors: RoundingErrors, statistics: Statistics, mixer: Mixer, measured: Sequence[Trial] = ()
) -> Factors:
    """What was measured of this model, beside what its statistics predict. ``measured``: its plans
    that were only cut."""
    law = law_of_rounding(measured, errors.elsewhere)
    factors = dict.fromkeys(EXPERT_GROUPS, 1.0)
    for name, cost in errors.groups.items():
        loss = loss_of_kl(cost.kl, law)
        expected = cost.error
        if name in EXPERT_GROUPS:
            expected = predicted_loss(errors, statistics, mixer, name, cost)
        if loss > 0 and expected > 0:
            factor = loss / expected
            factors[name] = min(max(factor, _LEAST), _MOST) if name in EXPERT_GROUPS else factor
    beside = 0.0 if law else unseen(on_all_text(measured, errors.elsewhere))
    return Factors(factors, beside)


def law_of_rounding(
    measured: Sequence[Trial], elsewhere: Sequence[MixedCost] = ()
) -> Sequence[Trial]:
    """The cuts that the law of rounding goes through: the ``measured`` ones with what they cost all
    text, none where they cost by chance."""
    return () if is_of_chance(measured) else on_all_text(measured, elsewhere)


def unseen(measured: Sequence[Trial]) -> float:
    """What cutting everything would cost beside what is predicted: the mean of what the
    ``measured`` cuts did, by the share of the neurons that they cut."""
    beside = [
        (loss_of_kl(trial.mean_kl) - trial.predicted_loss) / (1 - trial.keep_ratio)
        for trial in measured
        if trial.keep_ratio < 1
    ]
    return max(0.0, fmean(beside)) if beside else 0.0


def predicted_loss(
    errors: RoundingErrors, statistics: Statistics, mixer: Mixer, name: str, cost: GroupCost
) -> float:
    """What the sums say of a group of the experts' matrices, all neurons kept."""
    total, config = 0.0, statistics.info
    columns = {"gate": config["hidden"], "up": config["hidden"], "down": config["width"]}
    for layer in cost.layers:
        rounding = statistics.rounding(layer)
        sums = dict(zip(("gate", "up", "down"), (rounding[n] for n in ROUNDING), strict=True))
        for part in EXPERT_GROUPS[name]:
            kind = mixer.legal_type(cost.type, int(columns[part]))
            total += float(sums[part].sum()) * errors.of_expert(layer, part).get(kind, 0.0)
    return total
