"""A gated delta net: of every value head a matrix that each token corrects, then reads.

x ──┬── q k v ── Concat (state) ── Conv ── silu ── Split ──┬── q, k: length 1 ──┐
    ├── beta, decay ───────────────────────────────────────┼────────────────────┴── Scan (state)
    │                                                      └── v ───────────────────┘    │
    └── z ── silu ── Mul ── out_proj ──                                                  │
                      └─────────────────────── norm ─────────────────────────────────────┘

A step of the Scan is one token; M is (batch, heads, value, key), as ggml has the state:

    M = decay M;  M = M + beta (v - M k) k^T;  out = M q

Padding on the left leaves the state at zero: its inputs are made zero first.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.builder import FLOAT
from tenp_edge.exporters.onnx.graph.context import Context
from tenp_edge.exporters.onnx.linear.plain import plain_weight
from tenp_edge.models import DeltaNet

_LENGTH_EPSILON = np.asarray(1e-6, np.float32)  # transformers' l2norm
_STEP_INPUTS = ("q", "k", "v", "beta", "decay")


def delta_net(c: Context, path: str, x: ir.Value, layer: int, own: DeltaNet) -> ir.Value:
    """(batch, query, hidden) -> (batch, query, hidden)."""
    g, size, heads = c.g, own.head_dim, own.value_heads
    x = g.op(f"{path}/real", "Mul", [x, c.run.real])
    joined, z = _projected(c, path, x, layer, own)
    q, k, v = _convolved(c, path, joined, layer, own)
    beta, decay = _gates(c, path, x, layer, own)
    out = _scanned(c, path, layer, (q, k, v, beta, decay))
    out = g.op(f"{path}/heads", "Reshape", [out, [0, 0, heads, size]])
    normed = c.norm(f"{path}/norm", out, "delta_norm", layer, c.config.rms_norm_eps)
    gate = _silu(c, f"{path}/z", g.op(f"{path}/z", "Reshape", [z, [0, 0, heads, size]]))
    gated = g.op(f"{path}/gated", "Mul", [normed, gate])
    flat = g.op(f"{path}/flat", "Reshape", [gated, [0, 0, own.value_size]])
    return c.linear(f"{path}/out_proj", flat, "delta_out", layer)


def _projected(
    c: Context, path: str, x: ir.Value, layer: int, own: DeltaNet
) -> tuple[ir.Value, ir.Value]:
    """Queries, keys and values of all heads, (batch, query, channels); z (batch, query, values)."""
    g = c.g
    if not c.config.family.joined_projections:
        joined = c.linear(f"{path}/in_proj_qkv", x, "delta_qkv", layer)
        return joined, c.linear(f"{path}/in_proj_z", x, "delta_z", layer)
    values = own.value_size // own.key_heads
    whole = c.linear(f"{path}/in_proj_qkvz", x, "delta_qkvz", layer)
    by_head = g.op(f"{path}/by_head", "Reshape", [whole, [0, 0, own.key_heads, -1]])
    sizes = [own.head_dim, own.head_dim, values, values]
    parts = g.ops(f"{path}/by_head", "Split", [by_head, sizes], 4, axis=-1)
    q, k, v, z = (
        g.op(f"{path}/{name}/rows", "Reshape", [part, [0, 0, own.key_heads * width]])
        for name, part, width in zip("qkvz", parts, sizes, strict=True)
    )
    return g.op(f"{path}/qkv", "Concat", [q, k, v], axis=-1), z


def _convolved(
    c: Context, path: str, joined: ir.Value, layer: int, own: DeltaNet
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Queries, keys and values as columns, (batch, query, value heads, size, 1)."""
    g, size = c.g, own.head_dim
    columns = g.op(f"{path}/columns", "Transpose", [joined], perm=[0, 2, 1])
    seen = c.convolution_inputs(path, columns, layer, own.taps)
    kernel = plain_weight(g, c.spec("delta_conv", layer))
    mixed = g.op(f"{path}/conv", "Conv", [seen, kernel], group=own.channels)
    rows = g.op(f"{path}/conv/rows", "Transpose", [mixed], perm=[0, 2, 1])
    active = _silu(c, f"{path}/conv", rows)
    parts = [own.key_size, own.key_size, own.value_size]
    q, k, v = g.ops(f"{path}/parts", "Split", [active, parts], 3, axis=-1)
    scale = np.asarray(size**-0.5, np.float32)
    q = g.op(f"{path}/q/scaled", "Mul", [_of_length_one(c, f"{path}/q", q, own), scale])
    k = _of_length_one(c, f"{path}/k", k, own)
    v = g.op(f"{path}/v/heads", "Reshape", [v, [0, 0, own.value_heads, size, 1]])
    return q, k, v


def _of_length_one(c: Context, path: str, x: ir.Value, own: DeltaNet) -> ir.Value:
    """Each key head's vector, for each of its value heads: (batch, query, value heads, size, 1)."""
    g, size, served = c.g, own.head_dim, own.value_heads // own.key_heads
    heads = g.op(f"{path}/heads", "Reshape", [x, [0, 0, own.key_heads, 1, size]])
    squares = g.op(f"{path}/squares", "Mul", [heads, heads])
    length = g.op(f"{path}/length", "ReduceSum", [squares, [-1]])
    length = g.op(f"{path}/length", "Add", [length, _LENGTH_EPSILON])
    unit = g.op(f"{path}/unit", "Div", [heads, g.op(f"{path}/length", "Sqrt", [length])])
    repeated = g.op(f"{path}/served", "Expand", [unit, [1, 1, 1, served, 1]])
    return g.op(f"{path}/served", "Reshape", [repeated, [0, 0, own.value_heads, size, 1]])


def _gates(
    c: Context, path: str, x: ir.Value, layer: int, own: DeltaNet
) -> tuple[ir.Value, ir.Value]:
    """How far a token corrects, and what stays of the matrix: (batch, query, value heads, 1, 1)."""
    g = c.g
    beta, alpha = _gate_inputs(c, path, x, layer, own)
    raised = g.op(f"{path}/alpha", "Add", [alpha, plain_weight(g, c.spec("delta_dt_bias", layer))])
    rate = g.op(f"{path}/rate", "Exp", [plain_weight(g, c.spec("delta_decay", layer))])
    lost = g.op(f"{path}/lost", "Mul", [g.op(f"{path}/alpha", "Softplus", [raised]), rate])
    decay = g.op(f"{path}/decay", "Exp", [g.op(f"{path}/lost", "Neg", [lost])])
    share = g.op(f"{path}/beta", "Sigmoid", [beta])
    beta, decay = (
        g.op(f"{path}/{name}/column", "Reshape", [value, [0, 0, own.value_heads, 1, 1]])
        for name, value in (("beta", share), ("decay", decay))
    )
    return beta, decay


def _gate_inputs(
    c: Context, path: str, x: ir.Value, layer: int, own: DeltaNet
) -> tuple[ir.Value, ir.Value]:
    """Beta and alpha before their functions, (batch, query, value heads), in float as a router's
    scores: an error would stay in the state."""
    g, served = c.g, own.value_heads // own.key_heads
    if not c.config.family.joined_projections:
        beta, alpha = (
            c.makers.router(g, f"{path}/in_proj_{name}", x, c.spec(f"delta_{name}", layer))
            for name in "ba"
        )
        return beta, alpha
    joined = c.makers.router(g, f"{path}/in_proj_ba", x, c.spec("delta_ba", layer))
    by_head = g.op(f"{path}/ba", "Reshape", [joined, [0, 0, own.key_heads, 2 * served]])
    parts = g.ops(f"{path}/ba", "Split", [by_head, [served, served]], 2, axis=-1)
    beta, alpha = (
        g.op(f"{path}/{name}/rows", "Reshape", [part, [0, 0, own.value_heads]])
        for name, part in zip(("b", "a"), parts, strict=True)
    )
    return beta, alpha


def _scanned(c: Context, path: str, layer: int, inputs: tuple[ir.Value, ...]) -> ir.Value:
    """The heads' outputs token by token, (batch, query, value heads, size, 1)."""
    g = c.g

    def step(memory: ir.Value, *given: ir.Value) -> list[ir.Value]:
        q, k, v, beta, decay = given
        faded = g.op(f"{path}/step/faded", "Mul", [memory, decay])
        known = g.op(f"{path}/step/known", "MatMul", [faded, k])
        missing = g.op(f"{path}/step/missing", "Sub", [v, known])
        missing = g.op(f"{path}/step/share", "Mul", [missing, beta])
        row = g.op(f"{path}/step/row", "Transpose", [k], perm=[0, 1, 3, 2])
        added = g.op(f"{path}/step/added", "MatMul", [missing, row])
        after = g.op(f"{path}/step/after", "Add", [faded, added])
        return [after, g.op(f"{path}/step/out", "MatMul", [after, q])]

    body = g.loop_body(f"{path}/step", ("memory", *_STEP_INPUTS), step, FLOAT)
    start = c.run.states[layer]["memory"]
    last, out = g.ops(
        path,
        "Scan",
        [start, *inputs],
        2,
        body=body,
        num_scan_inputs=len(inputs),
        scan_input_axes=[1] * len(inputs),
        scan_output_axes=[1],
    )
    c.keep_state(layer, "memory", last)
    return out


def _silu(c: Context, path: str, x: ir.Value) -> ir.Value:
    share = c.g.op(f"{path}/act", "Sigmoid", [x])
    return c.g.op(f"{path}/act", "Mul", [x, share])
