"""FP4 (E2M1) codes, two a byte, times a scale for each group of columns: MXFP4 and NVFP4.

MXFP4: an exponent for 32 (OCP Microscaling Formats 1.0). NVFP4: an FP8 number for 16, and a float32
for the whole matrix, `facts["reciprocal"]` where it is divided by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tenp_edge.checkpoint.stored.numbers import e2m1_values, rounded, scale_values


def decode_fp4(
    parts: Mapping[str, torch.Tensor], shape: tuple[int, int], facts: Mapping[str, Any]
) -> torch.Tensor:
    """codes [rows, columns / 2] or [rows, groups, group / 2], scale [rows, groups]."""
    scale = scale_values(parts["scale"])
    if "whole" in parts:
        whole = parts["whole"].float().reshape(())
        scale = scale / whole if facts["reciprocal"] else scale * whole
    groups = e2m1_values(parts["codes"]).reshape(*scale.shape, facts["group"])
    values = (groups * scale.unsqueeze(-1)).reshape(shape)
    return rounded(values, facts.get("rounds_to"), parts["scale"])
