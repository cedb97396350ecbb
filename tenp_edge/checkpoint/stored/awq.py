"""AWQ ("gemm"): eight 4-bit codes in a word along the outputs, in the order its kernel wants.

weight[o, i] = scale[g, o] * (code[i, o] - zero[g, o]). The scaling by activations was folded into
the layers before when the file was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tenp_edge.checkpoint.stored.numbers import group_of, words_to_codes
from tenp_edge.models.quantised_layouts import AWQ_LANES

_BITS = 4


def decode_awq(
    parts: Mapping[str, torch.Tensor], shape: tuple[int, int], facts: Mapping[str, Any]
) -> torch.Tensor:
    """codes [columns, words], zero [groups, words], scale [groups, rows]."""
    rows, columns = shape
    codes, zero = (_outputs(parts[name])[:, :rows] for name in ("codes", "zero"))
    group = group_of(columns, facts["group"], len(zero), None)
    values = (codes - zero[group]).float() * parts["scale"].float()[group]
    return values.T.contiguous()


def _outputs(words: torch.Tensor) -> torch.Tensor:
    """[n, words] -> [n, 8 words]: the codes in the order of the outputs."""
    codes = words_to_codes(words, _BITS).reshape(len(words), -1, len(AWQ_LANES))
    return torch.stack([codes[..., place] for place in AWQ_LANES], dim=-1).flatten(-2)
