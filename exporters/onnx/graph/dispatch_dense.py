"""Dense dispatch for NPU compilers: every expert computes every token, its share is zero or not.

    ids, weights (tokens, top_k) ── ScatterElements ── shares (tokens, experts)   on the CPU
    x ── expert 0 ── Mul share 0 ── Add ── ... ── expert n ── Mul share n ── Add ──

The work does not depend on the routing, which is what fixed shapes cost. Each expert's matrices
have their own width.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.context import Context
from tenp_edge.exporters.onnx.graph.mlp import gated_mlp


def dispatch_dense(
    c: Context, path: str, x: ir.Value, ids: ir.Value, weights: ir.Value, layer: int
) -> ir.Value:
    """The weighted sum of each token's experts, (tokens, hidden)."""
    g, experts = c.g, c.config.num_experts
    tokens = c.run.fixed.batch * c.run.fixed.query
    none = g.constant(np.zeros((tokens, experts), np.float32), f"/constants/no_shares_{experts}")
    shares = g.op(f"{path}/scatter", "ScatterElements", [none, ids, weights], axis=1)
    total = None
    for expert in range(experts):
        name = f"{path}/experts.{expert}"
        out = gated_mlp(c, name, x, "expert", layer, expert)
        share = g.op(f"{name}/share", "Slice", [shares, [expert], [expert + 1], [1]])
        weighed = g.op(f"{name}/weighed", "Mul", [out, share])
        total = weighed if total is None else g.op(f"{name}/sum", "Add", [total, weighed])
    assert total is not None
    return total
