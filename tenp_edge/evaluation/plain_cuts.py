"""What cutting alone costs this model, on the text held out and on text of many kinds.

How cutting compares with rounding, the bundled model's law says of no other one: a few plans that
are only cut run beside the dense model, on the very text that groups are rounded on. And what the
calibration did not need looks free to cut. How far that is true elsewhere, its own statistics
cannot say: the same plans run on other text. The middle sequence decides there, not the mean: a
language that the model never learned loses any amount.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.evaluation.evaluator import LayerCache
from tenp_edge.evaluation.measured_variants import Measured, measure_variants
from tenp_edge.evaluation.rounding_text import halved, scored_after_start, shortened
from tenp_edge.evaluation.variants import Planned
from tenp_edge.forward.text_batch import Domain
from tenp_edge.planning.measured.probes import PLAIN, plain_plans
from tenp_edge.planning.measured.rounding_errors import MixedCost
from tenp_edge.planning.measured.trials import Trial
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan
from tenp_edge.progress import QUIET, Progress


@dataclass(frozen=True)
class PlainCuts:
    """``plans`` of the plain way at the probes' sizes."""

    cached: LayerCache
    plans: Sequence[CompressionPlan]

    @classmethod
    def of(cls, cached: LayerCache, statistics: Statistics) -> PlainCuts:
        """No plans where the statistics know too little for the plain way."""

        def make(asked: PlanOptions) -> CompressionPlan:
            return make_plan(cached, this_machine(), asked, statistics)

        return cls(cached, plain_plans(make) if statistics.has_elimination else ())

    def variants(self) -> list[Planned]:
        return [Planned(plan) for plan in self.plans]

    @property
    def losses(self) -> list[float]:
        """Predicted."""
        return [plan.record.predicted_loss or 0.0 for plan in self.plans]

    def trials(self, found: Sequence[Measured]) -> tuple[Trial, ...]:
        """With what `variants` cost the text held out."""
        return tuple(
            Trial(PLAIN, plan.keep_ratio, loss, one.mean_kl, 0.0, one.sequence_kl)
            for plan, loss, one in zip(self.plans, self.losses, found, strict=True)
        )

    def elsewhere(
        self,
        domains: Sequence[Domain],
        tokens: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
        work: Path,
        progress: Progress = QUIET,
    ) -> tuple[MixedCost, ...]:
        """The loss that the calibrated text predicts, and the KL of the middle sequence of about
        ``tokens`` of ``domains``. () without either."""
        if not domains or not self.plans:
            return ()
        found = measure_variants(
            self.cached,
            self.variants(),
            shortened([halved(domain) for domain in domains], tokens),
            device=device,
            dtype=dtype,
            work=work,
            progress=progress,
            what="cuts on other text",
            positions=scored_after_start,
        )
        return tuple(
            MixedCost(loss, max(median(one.sequence_kl), 0.0))
            for loss, one in zip(self.losses, found, strict=True)
        )
