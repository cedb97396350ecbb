"""A mixture-of-experts layer: router, dispatch to the routed experts, shared experts.

x ── (tokens, hidden) ──┬── router ── ids, weights ── dispatch ──┐
                        └── shared experts ── (gate) ────────── Add ── (batch, query, hidden)
"""

from __future__ import annotations

import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.context import Context
from tenp_edge.exporters.onnx.graph.mlp import gated_mlp
from tenp_edge.exporters.onnx.graph.router import chosen_experts


def moe(c: Context, path: str, x: ir.Value, layer: int) -> ir.Value:
    """(batch, query, hidden) -> (batch, query, hidden)."""
    g = c.g
    rows = g.op(f"{path}/rows", "Reshape", [x, [-1, c.config.hidden_size]])
    ids, weights = chosen_experts(c, f"{path}/router", rows, layer)
    out = c.makers.dispatch(c, path, rows, ids, weights, layer)
    if c.has("shared_gate", layer):
        shared = _shared(c, f"{path}/shared", rows, layer)
        out = g.op(f"{path}/sum", "Add", [out, shared])
    return g.op(f"{path}/out", "Reshape", [out, c.run.shape])


def _shared(c: Context, path: str, rows: ir.Value, layer: int) -> ir.Value:
    """The shared experts' output, weighed by a sigmoid of its own where the family has one."""
    out = gated_mlp(c, path, rows, "shared", layer)
    if not c.has("shared_router", layer):
        return out
    gate = c.makers.router(c.g, f"{path}/gate", rows, c.spec("shared_router", layer))
    weight = c.g.op(f"{path}/gate", "Sigmoid", [gate])
    return c.g.op(f"{path}/gate", "Mul", [out, weight])
