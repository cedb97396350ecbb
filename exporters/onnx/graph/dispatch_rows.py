"""Portable dispatch: experts compute the rows routed to them, sixteen experts under one If.

    ids (tokens, top_k) ── flat ──┬── counts (blocks, 16) ── ReduceSum ── Split ── each block: hit?
                                  └── TopK ── order ── tokens by expert ── Split ── of each block

    If block hit:  tokens ── Split by counts ── Gather from x ── expert ── Concat ── rows
    else:          no rows

    rows of all blocks ── Concat ── Gather (inverse of order) ── weights ── ReduceSum

An expert without a token in a block that is hit multiplies matrices of no rows. One If per expert
would make sessions load in a time that grows with the square of the number of experts in the
model, and a block with one output per expert loads slowly too (docs/experiments.md). Weights
lie in the outer graph, one scope away at most: two scopes away they ran as if not packed. Ragged
widths cost nothing.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.builder import BOOL, FLOAT, GraphBuilder
from tenp_edge.exporters.onnx.graph.context import Context
from tenp_edge.exporters.onnx.graph.mlp import gated_mlp

# Loads like 32 and faster than 8; 32 cost more idle nodes at decode.
BLOCK = 16
_Typed = list[tuple[ir.Value, ir.DataType]]


def dispatch_rows(
    c: Context, path: str, x: ir.Value, ids: ir.Value, weights: ir.Value, layer: int
) -> ir.Value:
    """The weighted sum of each token's experts, (tokens, hidden)."""
    g, experts = c.g, c.config.num_experts
    blocks = [range(i, min(i + BLOCK, experts)) for i in range(0, experts, BLOCK)]
    flat = g.op(f"{path}/ids", "Reshape", [ids, [-1]])  # (tokens x top_k,)
    order = _order(g, f"{path}/order", flat)
    tokens = g.op(f"{path}/tokens", "Div", [order, c.config.num_experts_per_tok])
    counts = _counts(g, f"{path}/counts", flat, len(blocks))
    sizes = g.op(f"{path}/sizes", "ReduceSum", [counts, [1]], keepdims=0)  # (blocks,)
    hit = g.op(f"{path}/hits", "Cast", [sizes], to=BOOL)
    hits = g.ops(f"{path}/hits", "Split", [hit], len(blocks), axis=0, num_outputs=len(blocks))
    mine = g.ops(f"{path}/tokens", "Split", [tokens, sizes], len(blocks), axis=0)
    rows: list[ir.Value] = []
    for i, block in enumerate(blocks):
        name = f"{path}/blocks.{i}"
        then = g.subgraph(name, partial(_hit, c, path, x, mine[i], counts, layer, block))
        other = g.subgraph(f"{name}/none", partial(_none, c, f"{name}/none"))
        rows.append(g.op(name, "If", [hits[i]], then_branch=then, else_branch=other))
    return _combined(c, f"{path}/combine", rows, order, weights)


def _order(g: GraphBuilder, path: str, flat: ir.Value) -> ir.Value:
    """Places of ``flat`` sorted by expert, (tokens x top_k,); within one expert in any order."""
    count = g.op(path, "Shape", [flat])
    return g.ops(path, "TopK", [flat, count], 2, axis=0, largest=0, sorted=1)[1]


def _counts(g: GraphBuilder, path: str, flat: ir.Value, blocks: int) -> ir.Value:
    """Rows of each expert, (blocks, BLOCK); the last block may end with experts there are not."""
    ones = g.op(path, "Expand", [1, g.op(path, "Shape", [flat])])
    none = g.constant(np.zeros(blocks * BLOCK, np.int64), f"/constants/no_counts_{blocks * BLOCK}")
    counts = g.op(path, "ScatterElements", [none, flat, ones], axis=0, reduction="add")
    return g.op(path, "Reshape", [counts, [blocks, BLOCK]])


def _hit(
    c: Context,
    path: str,
    x: ir.Value,
    tokens: ir.Value,
    counts: ir.Value,
    layer: int,
    block: range,
) -> _Typed:
    """The rows (n, hidden) of the experts of one block, expert after expert."""
    g, number = c.g, block.start // BLOCK
    block_path = f"{path}/blocks.{number}"
    count = g.op(f"{block_path}/counts", "Gather", [counts, number], axis=0)  # (BLOCK,)
    each = g.ops(f"{block_path}/tokens", "Split", [tokens, count], BLOCK, axis=0)
    outputs = []
    for expert, token in zip(block, each, strict=False):
        name = f"{path}/experts.{expert}"
        rows = g.op(f"{name}/rows", "Gather", [x, token], axis=0)
        outputs.append(gated_mlp(c, name, rows, "expert", layer, expert))
    return [(g.op(f"{block_path}/rows", "Concat", outputs, axis=0), FLOAT)]


def _none(c: Context, path: str) -> _Typed:
    """No rows."""
    rows = c.g.constant(np.zeros((0, c.config.hidden_size), np.float32), "/constants/no_rows")
    return [(c.g.op(path, "Identity", [rows]), FLOAT)]


def _combined(
    c: Context, path: str, rows: list[ir.Value], order: ir.Value, weights: ir.Value
) -> ir.Value:
    """Rows back in the tokens' order, weighed and added up."""
    g, shape = c.g, [-1, c.config.num_experts_per_tok, c.config.hidden_size]
    every = g.op(f"{path}/rows", "Concat", rows, axis=0)
    count = g.op(f"{path}/count", "Squeeze", [g.op(f"{path}/count", "Shape", [order])])
    places = g.op(f"{path}/places", "Range", [0, count, 1])
    inverse = g.op(f"{path}/inverse", "ScatterElements", [places, order, places], axis=0)
    sorted_rows = g.op(f"{path}/sorted", "Gather", [every, inverse], axis=0)
    by_token = g.op(f"{path}/sorted", "Reshape", [sorted_rows, shape])
    column = g.op(f"{path}/weights", "Unsqueeze", [weights, [-1]])
    weighed = g.op(path, "Mul", [by_token, column])
    return g.op(path, "ReduceSum", [weighed, [1]], keepdims=0)
