"""Grouped-query attention of all families but DeepSeek's, norms included.

    x ──┬── q_proj ── (q_norm) ── rotary ──┐
        ├── k_proj ── (k_norm) ── rotary ──┼── Attention(mask, past) ── o_proj ──
        └── v_proj ── (norm) ──────────────┘              └── present

q_norm and k_norm work on each head (qwen3_moe) or on the whole projection (olmoe). Where a layer
has no v_proj, what k_proj gives takes its place. Some families multiply what comes out by the
sigmoid of a gate, which q_proj gives beside the queries.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.context import Context, Heads
from tenp_edge.exporters.onnx.graph.operators import unit_norm
from tenp_edge.exporters.onnx.graph.rope import attention_scale


def grouped_query(c: Context, path: str, x: ir.Value, layer: int) -> ir.Value:
    """(batch, query, hidden) -> (batch, query, hidden)."""
    attention = c.config.layer_attention(layer)
    counts = {"q": attention.heads, "k": attention.kv_heads}
    rotated, projected = {}, {}
    gate = None
    for role, count in counts.items():
        projected[role] = c.linear(f"{path}/{role}_proj", x, role, layer)
        if role == "q" and c.config.family.attention_gate:
            projected[role], gate = _gate_apart(c, f"{path}/gate", projected[role], layer)
        normed = _normed(c, f"{path}/{role}_norm", projected[role], role, layer, count)
        rotated[role] = _rotated(c, f"{path}/{role}_rotary", normed, count, layer)
    v = c.linear(f"{path}/v_proj", x, "v", layer) if attention.own_values else projected["k"]
    if c.config.family.value_norm:
        v = _by_head(c, f"{path}/v_norm", v, attention.kv_heads, attention.head_dim, unit_norm)
    scale, sinks = attention_scale(c.config, layer), c.has("sinks", layer)
    heads = Heads(attention.heads, attention.kv_heads, scale, attention.window, sinks)
    mixed = c.makers.attend(c, path, rotated["q"], rotated["k"], v, heads, layer)
    if gate is not None:
        share = c.g.op(f"{path}/gate", "Sigmoid", [gate])
        mixed = c.g.op(f"{path}/gated", "Mul", [mixed, share])
    return c.linear(f"{path}/o_proj", mixed, "o", layer)


def _gate_apart(c: Context, path: str, x: ir.Value, layer: int) -> tuple[ir.Value, ir.Value]:
    """Queries, and the gate that some families have behind each head's: (query gate) heads."""
    own = c.config.layer_attention(layer)
    by_head = c.g.op(f"{path}/heads", "Reshape", [x, [0, 0, own.heads, 2 * own.head_dim]])
    parts = c.g.ops(f"{path}/parts", "Split", [by_head, [own.head_dim] * 2], 2, axis=-1)
    queries, gate = (
        c.g.op(f"{path}/{name}", "Reshape", [part, [0, 0, own.heads * own.head_dim]])
        for name, part in zip(("query", "flat"), parts, strict=True)
    )
    return queries, gate


def _rotated(c: Context, path: str, x: ir.Value, heads: int, layer: int) -> ir.Value:
    """Each head of ``x``, (batch, query, heads x size), rotated, or its first part and the rest.

    x ── Reshape ──┬── Slice ── rotary ──┬── Concat ── Reshape
                   └── Slice ────────────┘
    """
    pairs, size = c.config.family.rope_pairs, c.config.layer_attention(layer).head_dim
    part = c.config.rotary_size(layer)
    if part == size:
        return c.makers.rotary(c, path, x, heads, pairs, layer)
    by_head = c.g.op(f"{path}/heads", "Reshape", [x, [0, 0, heads, size]])
    first = c.g.op(f"{path}/first", "Slice", [by_head, [0], [part], [-1]])
    rest = c.g.op(f"{path}/rest", "Slice", [by_head, [part], [size], [-1]])
    flat = c.g.op(f"{path}/flat", "Reshape", [first, [0, 0, heads * part]])
    turned = c.makers.rotary(c, f"{path}/part", flat, heads, pairs, layer)
    turned = c.g.op(f"{path}/turned", "Reshape", [turned, [0, 0, heads, part]])
    whole = c.g.op(path, "Concat", [turned, rest], axis=-1)
    return c.g.op(path, "Reshape", [whole, [0, 0, heads * size]])


def _normed(c: Context, path: str, x: ir.Value, role: str, layer: int, heads: int) -> ir.Value:
    """RMSNorm of q or k as the family has it: none, per head, or over all heads at once."""
    kind, epsilon = c.config.qk_norm, c.config.rms_norm_eps
    size = c.config.layer_attention(layer).head_dim
    if kind == "none":
        return x
    if kind == "projection":
        return c.norm(path, x, f"{role}_norm", layer, epsilon)

    def norm(c: Context, path: str, x: ir.Value, _size: int) -> ir.Value:
        return c.norm(path, x, f"{role}_norm", layer, epsilon)

    return _by_head(c, path, x, heads, size, norm)


def _by_head(
    c: Context,
    path: str,
    x: ir.Value,
    heads: int,
    size: int,
    norm: Callable[[Context, str, ir.Value, int], ir.Value],
) -> ir.Value:
    """``norm`` of every head of ``x``, (batch, n, heads x size)."""
    split = c.g.op(f"{path}/split", "Reshape", [x, [0, 0, heads, size]])
    normed = norm(c, path, split, size)
    return c.g.op(f"{path}/merge", "Reshape", [normed, [0, 0, heads * size]])
