"""Matrices as integers: the arithmetic of int4 and int8, one block of rows at a time. Pure.

Symmetric, because every kernel of onnxruntime takes it without zero points. The number of a block
that lies furthest from zero becomes the most negative code, so the scale has its sign turned
around: all codes are used, and that number is kept to half a rounding step at most.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 32
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


def quantise_blocks(matrix: Floats, bits: int) -> tuple[Bytes, Floats]:
    """(rows, columns) -> codes (rows, blocks, 32 x bits / 8) and scales (rows, blocks).

    A code c stands for (c - 2^(bits - 1)) x scale, as MatMulNBits and QMoE read it; two codes of
    4 bits share a byte, the first in its lower half. The last block is padded with zeros.
    """
    blocked = _blocked(matrix)
    half = np.float32(2 ** (bits - 1))
    furthest = np.take_along_axis(blocked, np.abs(blocked).argmax(-1)[..., None], -1)
    scales = furthest / -half
    steps = blocked * _inverse(scales)
    codes = np.clip(np.rint(steps) + half, 0, 2 * half - 1).astype(np.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return codes, scales[..., 0]


def dequantise_blocks(codes: Bytes, scales: Floats, bits: int, columns: int) -> Floats:
    """What the codes stand for, (..., rows, columns)."""
    if bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(*codes.shape[:-1], -1)
    values = (codes.astype(np.float32) - np.float32(2 ** (bits - 1))) * scales[..., None]
    whole: Floats = values.reshape(*values.shape[:-2], -1)[..., :columns]
    return whole


def quantise_rows(matrix: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """int8 codes within +-127 and one scale per row, as onnxruntime's quantize_dynamic has it."""
    scales: Floats = np.abs(matrix).max(axis=1) / np.float32(127)
    codes = np.rint(matrix * _inverse(scales[:, None])).astype(np.int8)
    return codes, scales


def _blocked(matrix: Floats) -> Floats:
    """(rows, columns) -> (rows, blocks, 32), zeros after the last column."""
    rows, columns = matrix.shape
    blocks = -(-columns // BLOCK)
    padded = np.pad(matrix, ((0, 0), (0, blocks * BLOCK - columns)))
    return padded.reshape(rows, blocks, BLOCK)


def _inverse(scales: npt.NDArray[Any]) -> Floats:
    """1 / scale, 0 where the scale is: a block of zeros has codes of zero."""
    inverse: Floats = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    return inverse
