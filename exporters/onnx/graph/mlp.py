"""The gated MLP that experts, shared experts and dense layers are.

x ──┬── gate_proj ──┬── Sigmoid ── Mul ── Mul ── down_proj ──
    │               └──────────────┘      │
    └── up_proj ──────────────────────────┘

or as gpt-oss has it, (u + 1) g sigmoid(1.702 g) with g = min(gate, 7), u = up within -7 and 7; or
with Gelu in the place of Sigmoid and the first Mul.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.context import Context
from tenp_edge.models.family import Activation


def gated_mlp(
    c: Context, path: str, x: ir.Value, role: str, layer: int, expert: int | None = None
) -> ir.Value:
    """``x`` (..., hidden) -> (..., hidden); ``role``: expert, shared or mlp."""
    gate = c.linear(f"{path}/gate_proj", x, f"{role}_gate", layer, expert)
    up = c.linear(f"{path}/up_proj", x, f"{role}_up", layer, expert)
    product = _ACTIVATIONS[c.config.family.activation](c, path, gate, up)
    return c.linear(f"{path}/down_proj", product, f"{role}_down", layer, expert)


def _swiglu(c: Context, path: str, gate: ir.Value, up: ir.Value) -> ir.Value:
    sigmoid = c.g.op(f"{path}/act", "Sigmoid", [gate])
    active = c.g.op(f"{path}/act", "Mul", [gate, sigmoid])
    return c.g.op(path, "Mul", [active, up])


def _swiglu_oai(c: Context, path: str, gate: ir.Value, up: ir.Value) -> ir.Value:
    g, (limit, alpha, one) = c.g, (np.asarray(n, np.float32) for n in (7.0, 1.702, 1.0))
    gate = g.op(f"{path}/act/limit", "Min", [gate, limit])
    scaled = g.op(f"{path}/act/scaled", "Mul", [gate, alpha])
    sigmoid = g.op(f"{path}/act", "Sigmoid", [scaled])
    active = g.op(f"{path}/act", "Mul", [gate, sigmoid])
    up = g.op(f"{path}/act/clip", "Clip", [up, -limit, limit])
    raised = g.op(f"{path}/act/raised", "Add", [up, one])
    return g.op(path, "Mul", [active, raised])


def _geglu(c: Context, path: str, gate: ir.Value, up: ir.Value) -> ir.Value:
    active = c.g.op(f"{path}/act", "Gelu", [gate], approximate="tanh")
    return c.g.op(path, "Mul", [active, up])


_ACTIVATIONS: dict[Activation, Callable[[Context, str, ir.Value, ir.Value], ir.Value]] = {
    "silu": _swiglu,
    "gelu_tanh": _geglu,
    "swiglu_oai": _swiglu_oai,
}
