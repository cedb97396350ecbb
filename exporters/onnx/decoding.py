"""Weights as a directory stores them -> the checkpoint's matrices in float32.

NAME            as it is                    NAME.T              transposed
NAME.Q8.T       int8, scale per output      NAME.Q4, NAME.Q8    blocks of 32, scale per block
...experts.width_W.gate_up, .down [.Q4|.Q8] experts of one width, stacked; gate and up in turns
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tenp_edge.exporters.onnx.quantise import Floats, dequantise_blocks
from tenp_edge.exporters.onnx.tiers import tiers_of
from tenp_edge.models import ModelConfig, TensorSpec

Array = npt.NDArray[Any]
Load = Callable[[str], Array]
_BITS = {".Q4": 4, ".Q8": 8}


def decoded(stored: Mapping[str, Any], load: Load, config: ModelConfig, spec: TensorSpec) -> Array:
    """The matrix of ``spec`` as the graph multiplies by it. KeyError when it is stored otherwise.

    ``stored`` has the names of the stored tensors, ``load`` gives one.
    """
    if spec.name in stored:
        return load(spec.name)
    return output_matrix(stored, load, config, spec)


def output_matrix(
    stored: Mapping[str, Any], load: Load, config: ModelConfig, spec: TensorSpec
) -> Array:
    """Like `decoded`, but what a linear layer multiplies by where that is stored besides: the
    quantised copy of a tied embedding."""
    name = spec.name
    if f"{name}.T" in stored:
        return load(f"{name}.T").T
    if f"{name}.Q8.T" in stored:
        codes: Floats = load(f"{name}.Q8.T").T.astype(np.float32)
        return codes * load(f"{name}.scales")[:, None]
    for suffix, bits in _BITS.items():
        if name + suffix in stored:
            scales = load(f"{name}.scales")
            return dequantise_blocks(load(name + suffix), scales, bits, spec.shape[1])
    return _of_tier(stored, load, config, spec)


def _of_tier(stored: Mapping[str, Any], load: Load, config: ModelConfig, spec: TensorSpec) -> Array:
    """One expert's matrix out of the stack of its width."""
    if spec.expert is None or spec.layer is None:
        raise KeyError(spec.name)
    tiers = tiers_of(config.expert_widths[spec.layer], spec.layer)
    tier = next(tier for tier in tiers if spec.expert in tier.experts)
    number = tier.experts.index(spec.expert)
    prefix = f"{config.moe_prefix(spec.layer)}experts.width_{tier.width}"
    down = spec.role == "expert_down"
    base = f"{prefix}.down" if down else f"{prefix}.gate_up"
    matrix = _stacked(stored, load, base, number)
    if down:
        return matrix
    return matrix[1::2] if spec.role == "expert_up" else matrix[0::2]


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
