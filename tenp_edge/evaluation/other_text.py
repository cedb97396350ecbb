"""What cutting costs text of other kinds than the calibrated one, as measured on text of many.

What the calibration did not need looks free to cut. How far that is true elsewhere, its own
statistics cannot say: a few plans that are only cut run on other text beside the dense model. The
middle sequence decides, not the mean: a language that the model never learned loses any amount.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch

from tenp_edge.calibration.storage import Statistics
from tenp_edge.evaluation.evaluator import LayerCache
from tenp_edge.evaluation.measured_variants import measure_variants
from tenp_edge.evaluation.rounding_text import halved, scored_after_start, shortened
from tenp_edge.evaluation.variants import Planned
from tenp_edge.forward.text_batch import Domain
from tenp_edge.planning.measured.probes import plain_plans
from tenp_edge.planning.measured.rounding_errors import MixedCost
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.planner import make_plan
from tenp_edge.progress import QUIET, Progress


def cuts_elsewhere(
    cached: LayerCache,
    statistics: Statistics,
    domains: Sequence[Domain],
    tokens: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
    work: Path,
    progress: Progress = QUIET,
) -> tuple[MixedCost, ...]:
    """Plans of the plain way at the probes' sizes: the loss that the calibrated text predicts, and
    the KL of the middle sequence of about ``tokens`` of ``domains``. () without either."""
    if not domains or not statistics.has_elimination:
        return ()
    plans = plain_plans(lambda asked: make_plan(cached, this_machine(), asked, statistics))
    found = measure_variants(
        cached,
        [Planned(plan) for plan in plans],
        shortened([halved(domain) for domain in domains], tokens),
        device=device,
        dtype=dtype,
        work=work,
        progress=progress,
        what="cuts on other text",
        positions=scored_after_start,
    )
    losses = (plan.record.predicted_loss or 0.0 for plan in plans)
    return tuple(
        MixedCost(loss, max(median(one.sequence_kl), 0.0))
        for loss, one in zip(losses, found, strict=True)
    )
