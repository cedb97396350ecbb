"""GPTQ: whole numbers in words along the inputs, a scale and a zero point for each group of inputs.

weight[o, i] = scale[g(i), o] * (code[i, o] - zero[g(i), o] - shift); g is `g_idx`, which says the
group of each input where they were quantised in the order of activations (desc_act).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tenp_edge.checkpoint.stored.numbers import group_of, words_to_codes


def decode_gptq(
    parts: Mapping[str, torch.Tensor], shape: tuple[int, int], facts: Mapping[str, Any]
) -> torch.Tensor:
    """codes [words, rows], zero [groups, words], scale [groups, rows], order [columns]."""
    (rows, columns), bits = shape, facts["bits"]
    codes = words_to_codes(parts["codes"].T.contiguous(), bits)[:, :columns]
    zero = words_to_codes(parts["zero"], bits)[:, :rows] + facts["shift"]
    group = group_of(columns, facts["group"], len(zero), parts.get("order"))
    values: torch.Tensor = (codes - zero.T[:, group]).float()
    return values.mul_(parts["scale"].float().T[:, group])
