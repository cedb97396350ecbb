"""Cut neurons out of an expert: gate row (if any), up row and down column go together. Pure."""

from __future__ import annotations

from dataclasses import replace

import torch

from tenp_edge.checkpoint.files import ExpertWeights


def slice_expert(weights: ExpertWeights, neurons: torch.Tensor) -> ExpertWeights:
    """The expert with only ``neurons`` (ascending indices, [width]) left; down's bias stays."""
    rows = {name: t[neurons] for name, t in weights.parts.items() if not name.startswith("down")}
    return replace(weights, **rows, down=weights.down[:, neurons].contiguous())
