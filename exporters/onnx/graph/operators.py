"""Norm, rotary embedding and attention as single operators of ai.onnx opset 23."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.context import Context, Heads
from tenp_edge.exporters.onnx.graph.sinks import attend_with_sinks
from tenp_edge.exporters.onnx.linear.plain import plain_weight
from tenp_edge.models import TensorSpec


def rms_norm(c: Context, path: str, x: ir.Value, weight: TensorSpec, epsilon: float) -> ir.Value:
    """RMSNormalization over the last dimension, in float32 as transformers computes it."""
    scale = plain_weight(c.g, weight)
    if weight.role in c.config.family.zero_centred_roles:
        scale = c.g.op(f"{path}/scale", "Add", [scale, np.asarray(1, np.float32)])
    return c.g.op(path, "RMSNormalization", [x, scale], axis=-1, epsilon=epsilon)


def unit_norm(c: Context, path: str, x: ir.Value, size: int) -> ir.Value:
    """RMSNormalization over the last dimension, which is ``size`` long, without weights."""
    ones = c.g.constant(np.ones(size, np.float32), f"/constants/ones_{size}")
    epsilon = c.config.rms_norm_eps
    return c.g.op(path, "RMSNormalization", [x, ones], axis=-1, epsilon=epsilon)


def rotary(
    c: Context, path: str, x: ir.Value, heads: int, interleaved: bool, layer: int
) -> ir.Value:
    """RotaryEmbedding of (batch, query, heads x size) by this run's cosines and sines."""
    inputs = [x, *c.run.rotations[layer]]
    flag = int(interleaved)
    return c.g.op(path, "RotaryEmbedding", inputs, interleaved=flag, num_heads=heads)


def attend(
    c: Context, path: str, q: ir.Value, k: ir.Value, v: ir.Value, heads: Heads, layer: int | None
) -> ir.Value:
    """Attention with its own cache: past and present pass through the operator.

    q, k, v (batch, query, heads x size) ──┐
    mask (batch, 1, query, key) ───────────┼── Attention ──┬── (batch, query, heads x size)
    past key, value (batch, heads, past, size)             └── present key, value
    """
    if heads.sinks and layer is not None:
        return attend_with_sinks(c, path, q, k, v, heads, layer)
    sizes: dict[str, Any] = {
        "q_num_heads": heads.query,
        "kv_num_heads": heads.cached,
        "scale": heads.scale,
    }
    inputs = [q, k, v, c.run.masks.get(heads.window)]
    if layer is None:
        return c.g.op(path, "Attention", inputs, **sizes)
    out, key, value = c.g.ops(path, "Attention", [*inputs, *c.run.past[layer]], 3, **sizes)
    c.present(layer, key, value)
    return out
