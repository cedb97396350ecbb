"""The verdict's levels as stretches of a picture's upright axis."""

from __future__ import annotations

from tenp_edge.evaluation.verdict import LEVELS
from tenp_edge.pages.plot import Band


def bands() -> list[Band]:
    """A band a level, from no loss on; the worst has no end."""
    starts = [0.0, *(level.mean_kl for level in LEVELS)]
    return [
        Band(start, level.mean_kl, f"{level.word} difference")
        for start, level in zip(starts, LEVELS, strict=False)
    ]
