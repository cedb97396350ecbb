"""The gated MLP that experts, shared experts and dense layers are.

x ──┬── gate_proj ──┬── Sigmoid ── Mul ── Mul ── down_proj ──
    │               └──────────────┘      │
    └── up_proj ──────────────────────────┘
"""

from __future__ import annotations

import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.context import Context


def gated_mlp(
    c: Context, path: str, x: ir.Value, role: str, layer: int, expert: int | None = None
) -> ir.Value:
    """``x`` (..., hidden) -> (..., hidden); ``role``: expert, shared or mlp."""
    gate = c.linear(f"{path}/gate_proj", x, f"{role}_gate", layer, expert)
    up = c.linear(f"{path}/up_proj", x, f"{role}_up", layer, expert)
    sigmoid = c.g.op(f"{path}/act", "Sigmoid", [gate])
    active = c.g.op(f"{path}/act", "Mul", [gate, sigmoid])
    product = c.g.op(path, "Mul", [active, up])
    return c.linear(f"{path}/down_proj", product, f"{role}_down", layer, expert)
