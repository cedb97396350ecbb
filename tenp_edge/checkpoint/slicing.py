"""Cut neurons out of an expert: gate row, up row and down column go together. Pure."""

from __future__ import annotations

import torch

from tenp_edge.checkpoint.files import ExpertWeights


def slice_expert(weights: ExpertWeights, neurons: torch.Tensor) -> ExpertWeights:
    """The expert with only ``neurons`` (ascending indices, [width]) left; down's bias stays."""
    return ExpertWeights(
        gate=weights.gate[neurons],
        up=weights.up[neurons],
        down=weights.down[:, neurons].contiguous(),
        gate_bias=None if weights.gate_bias is None else weights.gate_bias[neurons],
        up_bias=None if weights.up_bias is None else weights.up_bias[neurons],
        down_bias=weights.down_bias,
    )
