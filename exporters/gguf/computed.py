"""Tensors of the file that no checkpoint stores: they follow from config.json."""

from __future__ import annotations

import torch

from tenp_edge.models import ModelConfig

# What a rotation's frequency is divided by so that it stands still; llama.cpp's converter's.
_STANDING = 1e30


def computed_tensors(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Role -> tensor. ``rope_factors`` float32 [head_dim / 2]: what the frequencies of the layers
    that see everything are divided by, where the last pairs of a head do not turn."""
    for layer, rope in enumerate(config.layer_ropes):
        if rope.kind == "proportional":
            return {"rope_factors": _proportional(config, layer)}
    return {}


def _proportional(config: ModelConfig, layer: int) -> torch.Tensor:
    size = config.layer_attention(layer).head_dim
    turning = int(config.layer_ropes[layer].scaling.get("partial_rotary_factor", 1.0) * size // 2)
    factors = torch.ones(size // 2, dtype=torch.float32)
    factors[turning:] = _STANDING
    return factors
