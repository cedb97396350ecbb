"""Norm, rotary embedding and attention for NPU compilers: MatMul, Mul, Softmax and the like.

Every shape follows from the fixed lengths, no tensor has more than four dimensions, and only
operators are used that all compilers in `targets` take.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.context import Context, Heads
from tenp_edge.exporters.onnx.linear.plain import plain_weight
from tenp_edge.models import TensorSpec


def rms_norm(c: Context, path: str, x: ir.Value, weight: TensorSpec, epsilon: float) -> ir.Value:
    """RMSNorm over the last dimension.

    x ──┬── Mul(x, x) ── ReduceMean ── Add epsilon ── Sqrt ──┐
        └────────────────────────────────────────────────── Div ── Mul weight
    """
    square = c.g.op(f"{path}/square", "Mul", [x, x])
    mean = c.g.op(path, "ReduceMean", [square, [-1]], keepdims=1)
    raised = c.g.op(path, "Add", [mean, np.asarray(epsilon, np.float32)])
    root = c.g.op(path, "Sqrt", [raised])
    unit = c.g.op(path, "Div", [x, root])
    return c.g.op(path, "Mul", [unit, plain_weight(c.g, weight)])


def rotary(
    c: Context, path: str, x: ir.Value, heads: int, interleaved: bool, layer: int
) -> ir.Value:
    """Rotate the pairs (a, b) of each head: (a cos - b sin, b cos + a sin).

    x (batch, query, heads x size) ── Reshape ──┬── Slice a ──┐
                                                └── Slice b ──┴── Mul, Sub, Add ── Concat ── Reshape

    ``interleaved``: a pair is two neighbours, else it spans the halves of a head. The result has
    all a before all b either way: scores do not see the order, which queries and keys share.
    """
    g, size = c.g, c.config.rotary_size(layer)
    by_head = g.op(f"{path}/split", "Reshape", [x, [0, 0, heads, size]])
    a, b = _pairs(c, path, by_head, size, interleaved)
    cos, sin = (
        g.op(f"{path}/{name}", "Unsqueeze", [value, [2]])  # (batch, query, 1, size / 2)
        for name, value in zip(("cos", "sin"), c.run.rotations[layer], strict=True)
    )

    def product(name: str, x: ir.Value, y: ir.Value) -> ir.Value:
        return g.op(f"{path}/{name}", "Mul", [x, y])

    first = g.op(path, "Sub", [product("a_cos", a, cos), product("b_sin", b, sin)])
    second = g.op(path, "Add", [product("b_cos", b, cos), product("a_sin", a, sin)])
    turned = g.op(path, "Concat", [first, second], axis=-1)
    return g.op(f"{path}/merge", "Reshape", [turned, [0, 0, heads * size]])


def _pairs(
    c: Context, path: str, x: ir.Value, size: int, interleaved: bool
) -> tuple[ir.Value, ir.Value]:
    """The first and the second of each pair in the last dimension."""
    half = size // 2
    bounds = ((0, size, 2), (1, size, 2)) if interleaved else ((0, half, 1), (half, size, 1))
    a, b = (
        c.g.op(f"{path}/{name}", "Slice", [x, [start], [end], [3], [step]])
        for name, (start, end, step) in zip("ab", bounds, strict=True)
    )
    return a, b


def attend(
    c: Context, path: str, q: ir.Value, k: ir.Value, v: ir.Value, heads: Heads, layer: int | None
) -> ir.Value:
    """Attention over a cache of fixed places; the host stores what is new.

    q ─ Reshape, Transpose ─┬─ past key x qT ─┐
                            └─ new key x qT ──┴ Concat ─ Transpose ─ Mul ─ Add mask ─ Softmax ─┐
        ┌────────────────────────────────────────────────────────────────────────────────── Slice
        ├─ x past value ─┐
        └─ x new value ──┴ Add ─ Transpose, Reshape ─ (batch, query, heads x size)

    Queries that share a key head lie in one matrix, (batch, cached heads, queries of the group,
    size): nothing is repeated, nothing of the cache copied or transposed.
    """
    assert layer is not None
    cache = c.run.caches[layer]
    key_size, value_size = cache.key_size, cache.value_size
    key = _by_head(c, f"{path}/key", k, heads.cached, key_size)
    value = _by_head(c, f"{path}/value", v, heads.cached, value_size)
    c.present(layer, key, value)
    past_key, past_value = c.run.past[layer]
    query = _by_head(c, f"{path}/query", q, heads.query, key_size)
    grouped = [0, heads.cached, -1, key_size]
    query = c.g.op(f"{path}/query/group", "Reshape", [query, grouped])
    query = c.g.op(f"{path}/query/columns", "Transpose", [query], perm=[0, 1, 3, 2])
    seen = _weights(c, f"{path}/scores", query, (past_key, key), heads)
    mixed = _mixture(c, f"{path}/mix", seen, (past_value, value))
    rows = [0, heads.query, -1, value_size]
    mixed = c.g.op(f"{path}/heads", "Reshape", [mixed, rows])
    mixed = c.g.op(f"{path}/merge", "Transpose", [mixed], perm=[0, 2, 1, 3])
    return c.g.op(f"{path}/merge", "Reshape", [mixed, [0, 0, heads.query * value_size]])


def _by_head(c: Context, path: str, x: ir.Value, heads: int, size: int) -> ir.Value:
    """(batch, n, heads x size) -> (batch, heads, n, size)."""
    split = c.g.op(path, "Reshape", [x, [0, 0, heads, size]])
    return c.g.op(path, "Transpose", [split], perm=[0, 2, 1, 3])


def _weights(
    c: Context, path: str, columns: ir.Value, keys: tuple[ir.Value, ir.Value], heads: Heads
) -> ir.Value:
    """Softmax of the scores: (batch, cached heads, queries of the group, past + query).

    ``columns`` (batch, cached heads, size, queries of the group).
    """
    g = c.g
    scores = [
        g.op(f"{path}/{name}", "MatMul", [key, columns])
        for name, key in zip(("past", "new"), keys, strict=True)
    ]
    whole = g.op(path, "Concat", scores, axis=2)
    whole = g.op(path, "Transpose", [whole], perm=[0, 1, 3, 2])
    whole = g.op(path, "Mul", [whole, np.asarray(heads.scale, np.float32)])
    past, query = c.run.fixed.past, c.run.fixed.query
    by_head = g.op(f"{path}/heads", "Reshape", [whole, [0, heads.query, query, past + query]])
    masked = g.op(f"{path}/masked", "Add", [by_head, c.run.masks[heads.window]])
    shares = g.op(path, "Softmax", [masked], axis=-1)
    return g.op(f"{path}/group", "Reshape", [shares, [0, heads.cached, -1, past + query]])


def _mixture(
    c: Context, path: str, weights: ir.Value, values: tuple[ir.Value, ir.Value]
) -> ir.Value:
    """(batch, cached heads, queries of the group, value size)."""
    past, query = c.run.fixed.past, c.run.fixed.query
    parts = []
    for name, value, (start, end) in zip(
        ("past", "new"), values, ((0, past), (past, past + query)), strict=True
    ):
        share = c.g.op(f"{path}/{name}", "Slice", [weights, [start], [end], [3]])
        parts.append(c.g.op(f"{path}/{name}", "MatMul", [share, value]))
    return c.g.op(path, "Add", parts)
