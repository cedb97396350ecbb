"""Portable dispatch: each expert computes the rows routed to it, under an If.

    ids (tokens, top_k) ── flat ──┬── hits of each expert ──── If ─┐ expert e hit: its rows
                                  └── NonZero(flat = e) ───────────┤ else: no row
    rows of all experts, and their places in flat ── Concat ──── inverse ── weights ── ReduceSum

An expert without a token costs one If. Weights lie in the outer graph. Ragged widths cost nothing.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from tenp_edge.exporters.onnx.builder import BOOL, FLOAT, INT64, GraphBuilder
from tenp_edge.exporters.onnx.context import Context
from tenp_edge.exporters.onnx.mlp import gated_mlp

_INT32 = ir.DataType.INT32
_Typed = list[tuple[ir.Value, ir.DataType]]


def dispatch_rows(
    c: Context, path: str, x: ir.Value, ids: ir.Value, weights: ir.Value, layer: int
) -> ir.Value:
    """The weighted sum of each token's experts, (tokens, hidden)."""
    g, experts = c.g, c.config.num_experts
    flat = g.op(f"{path}/ids", "Reshape", [ids, [-1]])  # (tokens x top_k,)
    hits = _hits(g, f"{path}/hits", flat, experts)
    rows, places = [], []
    for expert in range(experts):
        name = f"{path}/experts.{expert}"
        then = g.subgraph(name, partial(_hit, c, name, x, flat, layer, expert))
        other = g.subgraph(f"{name}/none", partial(_none, c, f"{name}/none"))
        given = [hits[expert]]
        row, where = g.ops(name, "If", given, 2, then_branch=then, else_branch=other)
        rows.append(row)
        places.append(where)
    return _combined(c, f"{path}/combine", rows, places, weights)


def _hits(g: GraphBuilder, path: str, flat: ir.Value, experts: int) -> list[ir.Value]:
    """One bool (1,) per expert: whether any token goes to it."""
    ones = g.op(path, "Cast", [g.op(path, "GreaterOrEqual", [flat, 0])], to=_INT32)
    none = g.constant(np.zeros(experts, np.int32), f"/constants/no_hits_{experts}")
    marked = g.op(path, "ScatterElements", [none, flat, ones], axis=0)
    marked = g.op(f"{path}/any", "Cast", [marked], to=BOOL)
    return list(g.ops(path, "Split", [marked], experts, axis=0, num_outputs=experts))


def _hit(c: Context, path: str, x: ir.Value, flat: ir.Value, layer: int, expert: int) -> _Typed:
    """The expert's rows (n, hidden) and where in ``flat`` they belong (n,)."""
    g = c.g
    mine = g.op(f"{path}/mine", "Equal", [flat, expert])
    where = g.op(f"{path}/mine", "NonZero", [mine])
    where = g.op(f"{path}/mine", "Reshape", [where, [-1]])
    token = g.op(f"{path}/token", "Div", [where, c.config.num_experts_per_tok])
    rows = g.op(f"{path}/token", "Gather", [x, token], axis=0)
    return [(gated_mlp(c, path, rows, "expert", layer, expert), FLOAT), (where, INT64)]


def _none(c: Context, path: str) -> _Typed:
    """No rows at no places."""
    g, hidden = c.g, c.config.hidden_size
    rows = g.constant(np.zeros((0, hidden), np.float32), "/constants/no_rows")
    where = g.constant(np.zeros(0, np.int64), "/constants/no_places")
    return [
        (g.op(f"{path}/rows", "Identity", [rows]), FLOAT),
        (g.op(f"{path}/places", "Identity", [where]), INT64),
    ]


def _combined(
    c: Context, path: str, rows: list[ir.Value], places: list[ir.Value], weights: ir.Value
) -> ir.Value:
    """Rows back in the tokens' order, weighed and added up."""
    g, shape = c.g, [-1, c.config.num_experts_per_tok, c.config.hidden_size]
    every = g.op(f"{path}/rows", "Concat", rows, axis=0)
    place = g.op(f"{path}/places", "Concat", places, axis=0)
    count = g.op(f"{path}/count", "Squeeze", [g.op(f"{path}/count", "Shape", [place])])
    order = g.op(f"{path}/order", "Range", [0, count, 1])
    inverse = g.op(f"{path}/inverse", "ScatterElements", [order, place, order], axis=0)
    sorted_rows = g.op(f"{path}/sorted", "Gather", [every, inverse], axis=0)
    by_token = g.op(f"{path}/sorted", "Reshape", [sorted_rows, shape])
    column = g.op(f"{path}/weights", "Unsqueeze", [weights, [-1]])
    weighed = g.op(path, "Mul", [by_token, column])
    return g.op(path, "ReduceSum", [weighed, [1]], keepdims=0)
