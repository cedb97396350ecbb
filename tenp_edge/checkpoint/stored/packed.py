"""compressed-tensors' pack-quantized: whole numbers in words along the columns.

(code - zero point) * scale; without zero points the codes are shifted by half their range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tenp_edge.checkpoint.stored.numbers import rounded, words_to_codes


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
    group = _group_of(columns, facts["group"], parts.get("order"))
    zeros = zero[:, group] if zero.shape[1] > 1 else zero
    scales = scale[:, group] if scale.shape[1] > 1 else scale
    return rounded((codes - zeros).float() * scales.float(), facts["rounds_to"], scale)


def _group_of(columns: int, group: int | None, order: torch.Tensor | None) -> torch.Tensor:
    """[columns]: which group each is in. An order of -1 everywhere means none."""
    if order is not None and bool((order >= 0).all()):
        return order.long()
    return torch.arange(columns) // (group or columns)
