"""Attention as GroupQueryAttention (com.microsoft), which can write into the cache it reads.

A caller that binds one buffer of its longest context as both past and present pays for no copy of
the cache; onnxruntime-genai does (past_present_share_buffer). MLA keeps the standard's Attention.

The operator counts keys instead of masking them: row b sees its first seqlens_k[b] + 1 keys, so
padding on the right works and padding on the left would be seen. A graph that is given it fails
at a node whose name says why, rather than to answer from padding.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tenp_edge.exporters.onnx.graph import operators
from tenp_edge.exporters.onnx.graph.builder import GraphBuilder
from tenp_edge.exporters.onnx.graph.context import Context, Heads, KeyCounts
from tenp_edge.exporters.onnx.linear.blocks import CONTRIB
from tenp_edge.exporters.onnx.linear.plain import plain_weight

_PATH = "/model/keys"
_REFUSAL = "/model/left_padding_is_not_possible_in_mode_ort-cpu"
_INT32 = ir.DataType.INT32


def attend(
    c: Context, path: str, q: ir.Value, k: ir.Value, v: ir.Value, heads: Heads, layer: int | None
) -> ir.Value:
    """q, k, v (batch, query, heads x size) and the cache -> (batch, query, heads x size).

    Queries and keys are rotated before: a table of cosines inside the operator would save 4 us per
    layer and end the context where it ends (134 MB for one of 262,144 tokens).
    """
    if layer is None or c.run.keys is None:
        return operators.attend(c, path, q, k, v, heads, layer)
    inputs: list[ir.Value | None] = [q, k, v, *c.run.past[layer]]
    inputs += [c.run.keys.last, c.run.keys.total]
    if heads.sinks:
        inputs += [*[None] * 4, plain_weight(c.g, c.spec("sinks", layer))]
    out, key, value = c.g.ops(
        path,
        "GroupQueryAttention",
        inputs,
        3,
        CONTRIB,
        num_heads=heads.query,
        kv_num_heads=heads.cached,
        scale=heads.scale,
        **({} if heads.window is None else {"local_window_size": heads.window}),
    )
    c.present(layer, key, value)
    return out


def count_keys(g: GraphBuilder, attention: ir.Value) -> KeyCounts:
    """What the operator needs of attention_mask (batch, total).

    attention_mask ──┬── ReduceSum ── Sub 1 ── last (batch,)
                     ├── Shape ── Add ── total ()
                     └── first column ── ReduceMin ── Sub 1 ── Gather [0] ──┘

    The Gather finds 0 where every row starts with a token, and fails where one starts with padding.
    """
    real = g.op(f"{_PATH}/real", "ReduceSum", [attention, [1]], keepdims=0)
    last = g.op(f"{_PATH}/last", "Sub", [real, 1])
    size = g.op(f"{_PATH}/size", "Shape", [attention], start=1, end=2)
    first = g.op(f"{_PATH}/first", "Gather", [attention, 0], axis=1)
    starts = g.op(f"{_PATH}/first", "ReduceMin", [first], keepdims=0)
    missing = g.op(f"{_PATH}/first", "Sub", [1, starts])
    nothing = g.constant(np.zeros(1, np.int64))
    checked = g.op(_REFUSAL, "Gather", [nothing, missing], axis=0)
    total = g.op(f"{_PATH}/total", "Add", [g.op(f"{_PATH}/size", "Squeeze", [size]), checked])
    return KeyCounts(
        g.op(f"{_PATH}/last", "Cast", [last], to=_INT32),
        g.op(f"{_PATH}/total", "Cast", [total], to=_INT32),
    )
