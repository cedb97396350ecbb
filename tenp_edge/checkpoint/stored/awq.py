"""AWQ ("gemm"): eight 4-bit codes in a word along the outputs, in the order its kernel wants.

weight[o, i] = scale[g, o] * (code[i, o] - zero[g, o]). The scaling by activations was folded into
the layers before when the file was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tenp_edge.checkpoint.stored.numbers import group_of, words_to_codes

_BITS = 4
# Where in a word of eight, counted from the lowest bits, output 0, 1, 2, ... of the eight lies.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


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
    codes = words_to_codes(words, _BITS).reshape(len(words), -1, len(_PLACES))
    return torch.stack([codes[..., place] for place in _PLACES], dim=-1).flatten(-2)
