"""How well a calibration reached the experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tenp_edge.calibration.storage import Statistics
from tenp_edge.progress import Progress

MIN_TOKENS = 32  # fewer than these are too few to judge an expert by


@dataclass(frozen=True)
class Coverage:
    """How well the experts were reached: (domain, layer) -> number of experts.

    ``below``: fewer than ``min_tokens`` tokens; ``unreached``: none at all. ``below_everywhere``
    counts, by layer, the experts with fewer than ``min_tokens`` over all domains together.
    """

    experts: int
    min_tokens: int
    below: dict[str, dict[int, int]]
    unreached: dict[str, dict[int, int]]
    below_everywhere: dict[int, int]

    def to_json(self) -> dict[str, Any]:
        return {
            "experts": self.experts,
            "min_tokens": self.min_tokens,
            "below": self.below,
            "unreached": self.unreached,
            "below_everywhere": self.below_everywhere,
        }


def coverage(statistics: Statistics, min_tokens: int = MIN_TOKENS) -> Coverage:
    """Count the experts that too few tokens reached, by domain and layer."""
    below: dict[str, dict[int, int]] = {name: {} for name in statistics.domains}
    unreached: dict[str, dict[int, int]] = {name: {} for name in statistics.domains}
    everywhere = {}
    for layer in statistics.layers:
        total = torch.zeros(int(statistics.info["experts"]), dtype=torch.float64)
        for name in statistics.domains:
            tokens = statistics.layer(name, layer)["tokens"]
            below[name][layer] = int((tokens < min_tokens).sum())
            unreached[name][layer] = int((tokens == 0).sum())
            total += tokens
        everywhere[layer] = int((total < min_tokens).sum())
    return Coverage(int(statistics.info["experts"]), min_tokens, below, unreached, everywhere)


def warn_coverage(report: Coverage, progress: Progress) -> None:
    """One line when experts saw too few tokens to be judged by."""
    few, total = (
        sum(report.below_everywhere.values()),
        report.experts * len(report.below_everywhere),
    )
    if few:
        progress.note(
            f"{few} of {total} experts saw fewer than {report.min_tokens} tokens; "
            "their scores are guesses: more --samples, or a longer --seq-len"
        )
