"""Attention with sinks as torch's fused operator computes it.

A sink is a logit of a head's own that takes its share of the softmax and gives nothing: here it is
one more key, whose score the mask holds and whose value is zero. transformers' eager form keeps
every score several times over, [n, heads, seq, seq]; this one keeps none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "tenp_sdpa_sinks"


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    scaling: float,
    s_aux: torch.Tensor,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """As transformers calls it: query [n, heads, seq, size], key and value of the cached heads,
    ``attention_mask`` bool [1, 1, seq, seq], ``s_aux`` [heads] -> [n, seq, heads, size]."""
    mask = torch.zeros(attention_mask.shape, dtype=query.dtype, device=query.device)
    mask = mask.masked_fill(~attention_mask, -torch.inf)
    count, heads, length, size = query.shape
    group = heads // key.shape[1]
    out = query.new_empty(count, length, heads, size)
    for cached in range(key.shape[1]):  # a mask of all heads would be larger than what comes out
        head_slice = slice(cached * group, (cached + 1) * group)
        out[:, :, head_slice] = scaled_dot_product_attention(
            query[:, head_slice],
            pad(key[:, cached : cached + 1], (0, 0, 0, 1)),
            pad(value[:, cached : cached + 1], (0, 0, 0, 1)),
            attn_mask=_with_sinks(mask, s_aux[head_slice]),
            scale=scaling,
            enable_gqa=True,
        ).transpose(1, 2)
    return out, None


def _with_sinks(mask: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
    """``mask`` [1, 1, seq, key] for every head of ``sinks``, with a key more."""
    shape = (1, len(sinks), mask.shape[2])
    column = sinks.to(mask.dtype).reshape(1, -1, 1, 1).expand(*shape, 1)
    return torch.cat([mask.expand(*shape, -1), column], dim=-1)


AttentionInterface.register(NAME, attend)
