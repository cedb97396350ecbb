"""Attention with sinks in plain operators: the standard's Attention has none.

    past key ── Concat new ── key ──┐
    q ── by groups ──────────────── MatMul ── Mul scale ── Where mask ── Concat sink ── Softmax ──┐
        ┌──────────────────────────────────────────────────────────────────────── Slice off sink ─┘
        └── MatMul value ── (batch, query, heads x size)

Queries that share a key head lie in one matrix, (batch, cached heads, queries of the group, size).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.context import Context, Heads
from tenp_edge.exporters.onnx.linear.plain import plain_weight


def attend_with_sinks(
    c: Context, path: str, q: ir.Value, k: ir.Value, v: ir.Value, heads: Heads, layer: int
) -> ir.Value:
    """q, k, v (batch, query, heads x size) and the cache -> (batch, query, heads x size)."""
    g, cache = c.g, c.run.caches[layer]
    key = _joined(c, f"{path}/key", k, heads.cached, cache.key_size, c.run.past[layer][0])
    value = _joined(c, f"{path}/value", v, heads.cached, cache.value_size, c.run.past[layer][1])
    c.present(layer, key, value)
    query = _by_head(c, f"{path}/query", q, heads.query, cache.key_size)
    query = g.op(f"{path}/query/group", "Reshape", [query, [0, heads.cached, -1, cache.key_size]])
    columns = g.op(f"{path}/key/columns", "Transpose", [key], perm=[0, 1, 3, 2])
    scores = g.op(f"{path}/scores", "MatMul", [query, columns])
    scores = g.op(f"{path}/scores", "Mul", [scores, np.asarray(heads.scale, np.float32)])
    weights = _weights(c, f"{path}/weights", scores, heads, layer)
    mixed = g.op(f"{path}/mix", "MatMul", [weights, value])
    # (batch, cached heads, queries of the group, size) -> (batch, heads, query, size), as q was.
    rows = g.op(f"{path}/heads", "Shape", [q], start=0, end=2)
    batch = g.op(f"{path}/heads", "Slice", [rows, [0], [1]])
    count = g.op(f"{path}/heads/query", "Slice", [rows, [1], [2]])
    shape = g.op(f"{path}/heads", "Concat", [batch, [heads.query], count, [-1]], axis=0)
    mixed = g.op(f"{path}/heads", "Reshape", [mixed, shape])
    mixed = g.op(f"{path}/merge", "Transpose", [mixed], perm=[0, 2, 1, 3])
    return g.op(f"{path}/merge", "Reshape", [mixed, [0, 0, heads.query * cache.value_size]])


def _by_head(c: Context, path: str, x: ir.Value, heads: int, size: int) -> ir.Value:
    """(batch, n, heads x size) -> (batch, heads, n, size)."""
    split = c.g.op(path, "Reshape", [x, [0, 0, heads, size]])
    return c.g.op(path, "Transpose", [split], perm=[0, 2, 1, 3])


def _joined(
    c: Context, path: str, new: ir.Value, heads: int, size: int, past: ir.Value
) -> ir.Value:
    """Past and new, (batch, heads, key, size)."""
    return c.g.op(path, "Concat", [past, _by_head(c, path, new, heads, size)], axis=2)


def _weights(c: Context, path: str, scores: ir.Value, heads: Heads, layer: int) -> ir.Value:
    """Softmax over the keys and the head's sink, without the sink's share: as ``scores``,
    (batch, cached heads, queries of the group, key)."""
    g, mask = c.g, c.run.masks[heads.window]
    grouped = g.op(f"{path}/grouped", "Shape", [scores])
    seen = g.op(f"{path}/seen", "Shape", [mask])  # (batch, 1, query, key)
    sizes = [g.op(f"{path}/seen/{n}", "Slice", [seen, [n], [n + 1]]) for n in (0, 2, 3)]
    shape = g.op(f"{path}/heads", "Concat", [sizes[0], [heads.query], *sizes[1:]], axis=0)
    by_head = g.op(f"{path}/heads", "Reshape", [scores, shape])
    masked = g.op(f"{path}/masked", "Where", [mask, by_head, np.asarray(-np.inf, np.float32)])
    sink = plain_weight(g, c.spec("sinks", layer))
    column = g.op(f"{path}/sink", "Reshape", [sink, [1, heads.query, 1, 1]])
    one = g.op(f"{path}/sink", "Concat", [sizes[0], [heads.query], sizes[1], [1]], axis=0)
    every = g.op(f"{path}/sink", "Expand", [column, one])
    whole = g.op(f"{path}/whole", "Concat", [masked, every], axis=-1)
    shares = g.op(path, "Softmax", [whole], axis=-1)
    kept = g.op(f"{path}/kept", "Slice", [shares, [0], [-1], [3]])
    return g.op(f"{path}/grouped", "Reshape", [kept, grouped])
