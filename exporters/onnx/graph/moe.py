"""A mixture-of-experts layer: router, dispatch to the routed experts, shared experts.

x ── (tokens, hidden) ──┬── router ── ids, weights ── dispatch ──┐
                        └── shared experts ── (gate) ────────── Add ── (batch, query, hidden)

The router of some families reads the residual stream instead of x.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.context import Context
from tenp_edge.exporters.onnx.graph.mlp import gated_mlp
from tenp_edge.exporters.onnx.graph.router import chosen_experts


def moe(c: Context, path: str, x: ir.Value, stream: ir.Value, layer: int) -> ir.Value:
    """Of ``x``, which is the normalised ``stream``: (batch, query, hidden) -> the same."""
    g = c.g
    rows = g.op(f"{path}/rows", "Reshape", [x, [-1, c.config.hidden_size]])
    read = (
        _residual(c, f"{path}/router/read", stream, layer) if c.has("router_scale", layer) else rows
    )
    ids, weights = chosen_experts(c, f"{path}/router", read, layer)
    out = c.makers.dispatch(c, path, rows, ids, weights, layer)
    if c.has("shared_gate", layer):
        shared = _shared(c, f"{path}/shared", rows, layer)
        out = g.op(f"{path}/sum", "Add", [out, shared])
    return g.op(f"{path}/out", "Reshape", [out, c.run.shape])


def _residual(c: Context, path: str, stream: ir.Value, layer: int) -> ir.Value:
    """What a router of the residual stream multiplies, (tokens, hidden)."""
    config = c.config
    rows = c.g.op(f"{path}/rows", "Reshape", [stream, [-1, config.hidden_size]])
    scaled = c.norm(f"{path}/norm", rows, "router_scale", layer, config.rms_norm_eps)
    smaller = np.asarray(config.hidden_size**-0.5, np.float32)
    return c.g.op(f"{path}/scaled", "Mul", [scaled, smaller])


def _shared(c: Context, path: str, rows: ir.Value, layer: int) -> ir.Value:
    """The shared experts' output, weighed by a sigmoid of its own where the family has one."""
    out = gated_mlp(c, path, rows, "shared", layer)
    if not c.has("shared_router", layer):
        return out
    gate = c.makers.router(c.g, f"{path}/gate", rows, c.spec("shared_router", layer))
    weight = c.g.op(f"{path}/gate", "Sigmoid", [gate])
    return c.g.op(f"{path}/gate", "Mul", [out, weight])
