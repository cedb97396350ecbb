"""A code a number, FP8 or INT8, times a scale for each block of them.

As DeepSeek's `weight_dequant` and compressed-tensors' naive-quantized: the product, in float32.
`weight_scale_inv` is multiplied by, despite its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tenp_edge.checkpoint.stored.numbers import rounded, scale_values


def decode_scaled(
    parts: Mapping[str, torch.Tensor], shape: tuple[int, int], facts: Mapping[str, Any]
) -> torch.Tensor:
    """codes [rows, columns], scale [row blocks, column blocks] (or one number)."""
    values = parts["codes"].float()
    if "zero" in parts:
        values -= _spread(parts["zero"].float(), shape, facts["block"])
    values *= _spread(scale_values(parts["scale"]), shape, facts["block"])
    return rounded(values, facts["rounds_to"], parts["scale"])


def _spread(
    grid: torch.Tensor, shape: tuple[int, int], block: tuple[int | None, int | None]
) -> torch.Tensor:
    """The number of every block at each of its places, where they differ along the dimension."""
    if grid.ndim < 2:
        return grid.reshape(-1, 1)
    for dim, (size, block_size) in enumerate(zip(shape, block, strict=True)):
        if block_size is not None and grid.shape[dim] > 1:
            grid = grid.repeat_interleave(block_size, dim).narrow(dim, 0, size)
    return grid
