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
    shape = (1, query.shape[1], *attention_mask.shape[-2:])
    mask = torch.zeros(attention_mask.shape, dtype=query.dtype, device=query.device)
    mask = mask.masked_fill(~attention_mask, -torch.inf).expand(shape)
    sinks = s_aux.to(query.dtype).reshape(1, -1, 1, 1).expand(*shape[:3], 1)
    out = scaled_dot_product_attention(
        query,
        pad(key, (0, 0, 0, 1)),
        pad(value, (0, 0, 0, 1)),
        attn_mask=torch.cat([mask, sinks], dim=-1),
        scale=scaling,
        enable_gqa=True,
    )
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
