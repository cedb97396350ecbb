"""compressed-tensors' pack-quantized: whole numbers in words along the columns.

(code - zero point) * scale; without zero points the codes are shifted by half their range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tenp_edge.checkpoint.stored.numbers import group_of, rounded, words_to_codes


def decode_packed(
    parts: Mapping[str, torch.Tensor], shape: tuple[int, int], facts: Mapping[str, Any]
) -> torch.Tensor:
    """codes [rows, words], scale [rows, groups], zero [words of rows, groups], order [columns]: the
    group of each column, where it is not the next ``group`` of them."""
    (rows, columns), bits = shape, facts["bits"]
    codes = words_to_codes(parts["codes"], bits)[:, :columns]
    scale = parts["scale"].reshape(rows, -1)
    zero = torch.full((1, 1), 1 << bits - 1)
    if "zero" in parts:
        zero = words_to_codes(parts["zero"].T.contiguous(), bits)[:, :rows].T
    group = group_of(columns, facts["group"], scale.shape[1], parts.get("order"))
    zeros = zero[:, group] if zero.shape[1] > 1 else zero
    scales = scale[:, group] if scale.shape[1] > 1 else scale
    return rounded((codes - zeros).float() * scales.float(), facts["rounds_to"], scale)
