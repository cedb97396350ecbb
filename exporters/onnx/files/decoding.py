"""Weights as a directory stores them -> the checkpoint's matrices in float32.

NAME            as it is                    NAME.T              transposed
NAME.Q8.T       int8, scale per output      NAME.Q4, NAME.Q8    blocks of 32, scale per block
...experts.width_W.gate_up, .down [.Q4|.Q8] experts of one width, stacked; gate and up in turns
...experts.width_W_TYPE...                  the same, where experts of one width have several types
...experts.width_W.gate_up.bias, .down.bias their biases
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tenp_edge.checkpoint.tensor_types import TensorTypes
from tenp_edge.exporters.onnx.graph.tiers import tiers_of
from tenp_edge.exporters.onnx.linear.quantise import Floats, dequantise_blocks
from tenp_edge.models import ModelConfig, TensorSpec

Array = npt.NDArray[Any]
Load = Callable[[str], Array]
ALL = slice(None)
_BITS = {".Q4": 4, ".Q8": 8}


def decoded(
    stored: Mapping[str, Any],
    load: Load,
    config: ModelConfig,
    spec: TensorSpec,
    at: slice = ALL,
    types: TensorTypes | None = None,
) -> Array:
    """The matrix of ``spec`` as the graph multiplies by it, or its rows ``at``.

    ``stored`` has the names of the stored tensors, ``load`` gives one, ``types`` are a plan's.
    KeyError when it is stored otherwise.
    """
    if spec.name in stored:
        return load(spec.name)[at]
    return output_matrix(stored, load, config, spec, at, types)


def output_matrix(
    stored: Mapping[str, Any],
    load: Load,
    config: ModelConfig,
    spec: TensorSpec,
    at: slice = ALL,
    types: TensorTypes | None = None,
) -> Array:
    """Like `decoded`, but what a linear layer multiplies by where that is stored besides: the
    quantised copy of a tied embedding."""
    name = spec.name
    if f"{name}.T" in stored:
        return load(f"{name}.T").T[at]
    if f"{name}.Q8.T" in stored:
        codes: Floats = load(f"{name}.Q8.T").T[at].astype(np.float32)
        return codes * load(f"{name}.scales")[at, None]
    for suffix, bits in _BITS.items():
        if name + suffix in stored:
            blocks, scales = load(name + suffix)[at], load(f"{name}.scales")[at]
            return dequantise_blocks(blocks, scales, bits, spec.shape[1])
    if name in stored:
        return load(name)[at]
    return _of_tier(stored, load, config, spec, types)[at]


def stored_somehow(
    stored: Mapping[str, Any],
    config: ModelConfig,
    spec: TensorSpec,
    types: TensorTypes | None = None,
) -> bool:
    """Whether `decoded` knows how to read ``spec``."""
    if any(spec.name + suffix in stored for suffix in ("", ".T", ".Q8.T", *_BITS)):
        return True
    if spec.expert is None:
        return False
    base, _ = _tier_place(config, spec, types)
    return any(base + suffix in stored for suffix in ("", *_BITS))


def _of_tier(
    stored: Mapping[str, Any],
    load: Load,
    config: ModelConfig,
    spec: TensorSpec,
    types: TensorTypes | None,
) -> Array:
    """One expert's matrix out of the stack of its width."""
    if spec.expert is None:
        raise KeyError(spec.name)
    matrix = _stacked(stored, load, *_tier_place(config, spec, types))
    if spec.role.startswith("expert_down"):
        return matrix
    return matrix[1::2] if spec.role.startswith("expert_up") else matrix[0::2]


def _tier_place(
    config: ModelConfig, spec: TensorSpec, types: TensorTypes | None
) -> tuple[str, int]:
    """Name of the stack that holds an expert's matrix, and its number there."""
    assert spec.layer is not None and spec.expert is not None
    tiers = tiers_of(config.expert_widths[spec.layer], spec.layer, types)
    tier = next(tier for tier in tiers if spec.expert in tier.experts)
    prefix = f"{config.moe_prefix(spec.layer)}experts.{tier.name}"
    part = "down" if spec.role.startswith("expert_down") else "gate_up"
    kind = ".bias" if spec.role.endswith("_bias") else ""
    return f"{prefix}.{part}{kind}", tier.experts.index(spec.expert)


def _stacked(stored: Mapping[str, Any], load: Load, base: str, number: int) -> Array:
    if base in stored:
        whole: Array = load(base)[number]
        return whole
    suffix = next((suffix for suffix in _BITS if base + suffix in stored), None)
    if suffix is None:
        raise KeyError(base)
    scales = load(f"{base}.scales")[number]
    codes = load(base + suffix)[number].reshape(*scales.shape, -1)
    columns = scales.shape[1] * codes.shape[2] * 8 // _BITS[suffix]
    return dequantise_blocks(codes, scales, _BITS[suffix], columns)
