"""What a model is, without torch: families as tables, config.json, headers.

The names below are loaded when they are first asked for: `run` needs a few facts of layers, and no
family.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenp_edge.models.config.assembly import read_config
    from tenp_edge.models.config.keys import EXPERT_KEYS
    from tenp_edge.models.families import FAMILIES
    from tenp_edge.models.family import Family
    from tenp_edge.models.layer_attention import LayerAttention
    from tenp_edge.models.mixers import (
        DeltaNet,
        Mamba2,
        Mixer,
        Shape,
        ShortConvolution,
        state_bytes,
    )
    from tenp_edge.models.model_config import MLA, ModelConfig, Rope, VisionFacts
    from tenp_edge.models.tensors import Part, TensorSpec, expected_tensors

__all__ = [
    "EXPERT_KEYS",
    "FAMILIES",
    "MLA",
    "DeltaNet",
    "Family",
    "LayerAttention",
    "Mamba2",
    "Mixer",
    "ModelConfig",
    "Part",
    "Rope",
    "Shape",
    "ShortConvolution",
    "TensorSpec",
    "VisionFacts",
    "expected_tensors",
    "read_config",
    "state_bytes",
]
_HOMES = {
    "DeltaNet": "mixers",
    "EXPERT_KEYS": "config.keys",
    "FAMILIES": "families",
    "MLA": "model_config",
    "Family": "family",
    "LayerAttention": "layer_attention",
    "Mamba2": "mixers",
    "Mixer": "mixers",
    "ModelConfig": "model_config",
    "Part": "tensors",
    "Rope": "model_config",
    "Shape": "mixers",
    "ShortConvolution": "mixers",
    "TensorSpec": "tensors",
    "VisionFacts": "model_config",
    "expected_tensors": "tensors",
    "read_config": "config.assembly",
    "state_bytes": "mixers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tenp_edge.models' has no attribute {name!r}")
    return getattr(import_module(f"tenp_edge.models.{_HOMES[name]}"), name)
