"""YaRN's frequencies (arXiv 2309.00071): which rotations are slowed down, and how far.

ggml does this by itself with a range of whole dimensions. Models that do not round the range
(``truncate`` false in config.json, as gpt-oss) need the divisors of every frequency.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Divisors = npt.NDArray[np.float64]
BETA_FAST, BETA_SLOW = 32.0, 1.0  # llama.cpp's


def frequency_divisors(
    dimensions: int,
    base: float,
    factor: float,
    original_context: int,
    beta_fast: float,
    beta_slow: float,
    *,
    truncate: bool,
) -> Divisors:
    """What each of the dimensions / 2 frequencies is divided by: 1 for those that turn more than
    ``beta_fast`` times in the original context, ``factor`` for fewer than ``beta_slow``, a ramp
    between; as transformers' _compute_yarn_parameters."""

    def dimension(rotations: float) -> float:
        ratio = original_context / (rotations * 2 * math.pi)
        return dimensions * math.log(ratio) / (2 * math.log(base))

    low, high = dimension(beta_fast), dimension(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dimensions - 1)
    high += 0.001 if low == high else 0
    ramp = np.clip((np.arange(dimensions // 2) - low) / (high - low), 0, 1)
    divisors: Divisors = 1 / (ramp / factor + 1 - ramp)
    return divisors
