"""The gated MLP that experts, shared experts and dense layers are.

x ──┬── gate_proj ──┬── Sigmoid ── Mul ── Mul ── down_proj ──
    │               └──────────────┘      │
    └── up_proj ──────────────────────────┘

or Gelu in the place of Sigmoid and the first Mul.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.context import Context
from tenp_edge.models.family import Activation


def _silu(c: Context, path: str, gate: ir.Value) -> ir.Value:
    return c.g.op(path, "Mul", [gate, c.g.op(path, "Sigmoid", [gate])])


def _gelu_tanh(c: Context, path: str, gate: ir.Value) -> ir.Value:
    return c.g.op(path, "Gelu", [gate], approximate="tanh")


_ACTIVATIONS: dict[Activation, Callable[[Context, str, ir.Value], ir.Value]] = {
    "silu": _silu,
    "gelu_tanh": _gelu_tanh,
}


def gated_mlp(
    c: Context, path: str, x: ir.Value, role: str, layer: int, expert: int | None = None
) -> ir.Value:
    """``x`` (..., hidden) -> (..., hidden); ``role``: expert, shared or mlp."""
    gate = c.linear(f"{path}/gate_proj", x, f"{role}_gate", layer, expert)
    up = c.linear(f"{path}/up_proj", x, f"{role}_up", layer, expert)
    active = _ACTIVATIONS[c.config.family.activation](c, f"{path}/act", gate)
    product = c.g.op(path, "Mul", [active, up])
    return c.linear(f"{path}/down_proj", product, f"{role}_down", layer, expert)
