"""What a plan can choose from: layers, experts, legal widths. Pure.

The full width is always legal; a cut width is a positive multiple of the target's width multiple.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Space:
    """What can be chosen: the MoE layers, their experts, and the legal widths of an expert.

    ``most_widths``: how many different ones the model may have.
    """

    layers: tuple[int, ...]
    experts: int
    full: int
    multiple: int
    most_widths: int | None = None

    @property
    def total_experts(self) -> int:
        return len(self.layers) * self.experts

    @property
    def total_neurons(self) -> int:
        return self.total_experts * self.full

    @property
    def cut_widths(self) -> tuple[int, ...]:
        """Legal widths below the full one, ascending."""
        return tuple(range(self.multiple, self.full, self.multiple))

    @property
    def legal_widths(self) -> tuple[int, ...]:
        return (*self.cut_widths, self.full)

    def floor(self, width: float) -> int:
        """The largest legal width not above ``width``; the smallest legal one if none is."""
        if width >= self.full:
            return self.full
        return max((w for w in self.cut_widths if w <= width), default=self.legal_widths[0])

    def budget(self, keep: float) -> int:
        """Neurons in a share ``keep`` of the model; a hair of tolerance for 0.1 + 0.2."""
        return min(math.floor(keep * self.total_neurons + 1e-6), self.total_neurons)
