"""What a plan will cost in all, by pruning and by its types, and how sure that is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tenp_edge.checkpoint.plan_record import PlanRecord
from tenp_edge.planning.measured.kl_law import together_kl


@dataclass(frozen=True)
class ExpectedKL:
    """Nats per token; ``range``: where it lies in nine cases of ten, None where that is not
    known."""

    kl: float
    range: tuple[float, float] | None = None

    def __str__(self) -> str:
        """ "0.004 (0.002 to 0.015)"."""
        if self.range is None:
            return f"{self.kl:.2g}"
        low, high = self.range
        return f"{self.kl:.2g} ({low:.2g} to {high:.2g})"


def expected_kl(record: PlanRecord, keep_ratio: float) -> ExpectedKL | None:
    """As far as it is known: None before a calibration."""
    choice: Mapping[str, Any] = record.type_choice or {}
    if "bits_per_weight" in choice:
        return ExpectedKL(choice["kl"], _pair(choice.get("kl_range")))
    by_type = record.type_kl or 0.0
    if record.predicted_kl is None or keep_ratio == 1.0:
        return None if record.type_kl is None else ExpectedKL(by_type)
    cut = _pair(record.predicted_kl_range)
    both = None if cut is None else (together_kl(cut[0], by_type), together_kl(cut[1], by_type))
    return ExpectedKL(together_kl(record.predicted_kl, by_type), both)


def _pair(found: Any) -> tuple[float, float] | None:
    return None if not found else (float(found[0]), float(found[1]))
