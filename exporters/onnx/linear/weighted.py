"""Blocks of codes with the scale that loses least, columns weighed by their importance. Pure.

    scale = argmin over s of the sum over a block of q_j (w_j - s c_j(s))^2

`quantise_blocks` takes the scale at which the number furthest from zero becomes the most negative
code. Smaller and larger ones are tried beside it, with either sign, and the best one is refined:
for the codes it gives, the scale that fits them best is a quotient of two sums.
"""

from __future__ import annotations

import numpy as np
import torch

from tenp_edge.exporters.onnx.linear.quantise import BLOCK, Bytes, Floats, quantise_blocks

# The code that the number furthest from zero is given, tried in turn; codes end at -8 and 7.
_FURTHEST = (-8.0, -7.5, -8.6, -7.0, -9.3, -6.4, 7.0, 7.6, 8.3, 6.4)
_ROWS = 2**15  # blocks at a time: they stay in the processor's cache


def weighted_blocks(matrix: Floats, bits: int, columns: Floats | None) -> tuple[Bytes, Floats]:
    """As `quantise_blocks` (rows, columns), with ``columns`` weighed so (None: all alike).

    Codes of 8 bits take its own scale: there is nothing to gain.
    """
    if bits != 4:
        return quantise_blocks(matrix, bits)
    rows, length = matrix.shape
    blocks = -(-length // BLOCK)
    room = blocks * BLOCK - length
    values = torch.from_numpy(np.pad(matrix, ((0, 0), (0, room)))).view(-1, BLOCK)
    weights = torch.ones(blocks * BLOCK)
    if columns is not None:
        weights[:length] = torch.from_numpy(columns) + _floor(columns)
    every = weights.view(blocks, BLOCK).repeat(-(-_ROWS // blocks), 1)
    step = len(every)
    codes, scales = zip(
        *(_fitted(part, every[: len(part)]) for part in torch.split(values, step)), strict=True
    )
    whole = torch.cat(codes).numpy().reshape(rows, blocks, BLOCK)
    packed: Bytes = whole[..., 0::2] | (whole[..., 1::2] << 4)
    return packed, torch.cat(scales).numpy().reshape(rows, blocks)


def _floor(columns: Floats) -> float:
    """What every column weighs at least: one that the text never fed is not worth nothing."""
    return max(float(columns.mean()) * 1e-3, 1e-30)


def _fitted(values: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes 0 to 15 and scales of blocks [n, 32]."""
    furthest = values.gather(1, values.abs().argmax(1, keepdim=True))
    best_scale = torch.zeros_like(furthest)
    best = (weights * values.square()).sum(1, keepdim=True)
    for code in _FURTHEST:
        scale = furthest / code
        codes = _codes(values, scale)
        squares = (weights * codes.square()).sum(1, keepdim=True)
        scale = (weights * codes * values).sum(1, keepdim=True) / squares.clamp_min(1e-30)
        error = (weights * (values - scale * codes).square()).sum(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        best_scale = torch.where(better, scale, best_scale)
    codes = _codes(values, best_scale) + 8
    return codes.to(torch.uint8), best_scale


def _codes(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    return (values * inverse).round_().clamp_(-8, 7)
