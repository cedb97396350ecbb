"""What cuts cost all text to come, of which the calibrated kind is only a part. Pure.

A calibration shows what its own text needs, while rounding hurts all text alike. Plans that are
only cut were measured on text of many kinds, too (`evaluation.plain_cuts`): of a calibration on
many kinds they cost that no more, of one on a narrow kind many times as much, small cuts most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from tenp_edge.planning.measured.kl_law import predicted_kl
from tenp_edge.planning.measured.rounding_errors import MixedCost
from tenp_edge.planning.measured.trials import Trial

# Of all text to come, what is of other kinds: the given text counts twice as much. More helps
# others little and costs the given text a quarter more KL at small budgets (docs/method.md).
_OTHER = 1 / 3
_NOISE = 1e-7  # nats: what a forward in float32 leaves of no difference at all


def on_all_text(cuts: Sequence[Trial], elsewhere: Sequence[MixedCost]) -> list[Trial]:
    """The ``cuts`` with what they cost all text: the geometric mean of their KL on the calibrated
    text and on others, by how much of all text either is."""
    return [
        replace(
            cut, mean_kl=cut.mean_kl * cost_elsewhere(cut.predicted_loss, cuts, elsewhere) ** _OTHER
        )
        for cut in cuts
    ]


def cost_elsewhere(loss: float, cuts: Sequence[Trial], elsewhere: Sequence[MixedCost]) -> float:
    """How many times the KL of ``cuts`` those of a predicted ``loss`` cost other text; at least 1.

    Measured at a few losses, the middle sequence of either text; logarithms between them.
    """
    known = sorted((math.log(cut.loss), _ratio(cut, cuts)) for cut in elsewhere if cut.loss > 0)
    if not known or loss <= 0:
        return 1.0
    losses, ratios = zip(*known, strict=True)
    return math.exp(float(np.interp(math.log(loss), losses, ratios)))


def _ratio(there: MixedCost, cuts: Sequence[Trial]) -> float:
    """Logarithm of the KL of ``there`` over that of the same plan on the calibrated text; by the
    law of ``cuts`` where it is none of them."""
    if not cuts:
        return 0.0
    same = (cut for cut in cuts if math.isclose(cut.predicted_loss, there.loss, rel_tol=1e-6))
    here = next(same, None)
    if here is None:
        kl = predicted_kl(there.loss, cuts)
    else:
        kl = median(here.sequence_kl) if here.sequence_kl else here.mean_kl
    return max(0.0, math.log(max(there.kl, _NOISE) / max(kl, _NOISE)))
