"""Decoders of quantised weights: a file for each kind of layout, pure functions of its parts.

The names, dtypes and shapes of the parts are in `tenp_edge.models.quantised_layouts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from tenp_edge.checkpoint.stored.awq import decode_awq
from tenp_edge.checkpoint.stored.fp4 import decode_fp4
from tenp_edge.checkpoint.stored.ggml import decode_ggml
from tenp_edge.checkpoint.stored.gptq import decode_gptq
from tenp_edge.checkpoint.stored.packed import decode_packed
from tenp_edge.checkpoint.stored.scaled import decode_scaled

Parts = Mapping[str, torch.Tensor]
Decoder = Callable[[Parts, tuple[int, int], Mapping[str, Any]], torch.Tensor]
"""(parts, (rows, columns), facts of the layout) -> the weight of these rows, [rows, columns]."""

DECODERS: dict[str, Decoder] = {
    "scaled": decode_scaled,
    "fp4": decode_fp4,
    "packed": decode_packed,
    "gptq": decode_gptq,
    "awq": decode_awq,
    "ggml": decode_ggml,
}
