"""Cut neurons out of an expert: gate row, up row and down column go together. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tenp_edge.checkpoint.files import ExpertWeights


def slice_expert(weights: ExpertWeights, neurons: torch.Tensor) -> ExpertWeights:
    """The expert with only ``neurons`` (ascending indices, [width]) left."""
    return ExpertWeights(
        gate=weights.gate[neurons],
        up=weights.up[neurons],
        down=weights.down[:, neurons].contiguous(),
    )


def kept_experts(widths: Sequence[int]) -> torch.Tensor:
    """Original numbers of the experts that a layer keeps (width above 0), ascending."""
    return torch.tensor([expert for expert, width in enumerate(widths) if width])
