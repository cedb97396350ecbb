"""LFM2's gated short convolution over the tokens of a channel.

x ── in_proj ── Split ──┬── b ──┐
                        ├── u ── Mul ── (Mul not padding) ── Transpose ── Concat ──┬── Conv ──┐
                        │                                     state ───┘           └── state  │
                        └── c ──────────────────────────────────────────── Mul ── Transpose ──┘
                                                                            └── out_proj ──

Padding on the left adds nothing to the sums of the tokens behind it.
"""

from __future__ import annotations

import onnx_ir as ir

from tenp_edge.exporters.onnx.graph.context import Context
from tenp_edge.exporters.onnx.linear.plain import plain_weight
from tenp_edge.models import ShortConvolution


def short_convolution(
    c: Context, path: str, x: ir.Value, layer: int, own: ShortConvolution
) -> ir.Value:
    """(batch, query, hidden) -> (batch, query, hidden)."""
    g, size = c.g, own.channels
    joined = c.linear(f"{path}/in_proj", x, "conv_in", layer)
    b, gate, u = g.ops(f"{path}/parts", "Split", [joined, [size] * 3], 3, axis=-1)
    fed = g.op(f"{path}/fed", "Mul", [b, u])
    fed = g.op(f"{path}/real", "Mul", [fed, c.run.real])
    columns = g.op(f"{path}/columns", "Transpose", [fed], perm=[0, 2, 1])
    seen = c.convolution_inputs(path, columns, layer, own.taps)
    kernel = plain_weight(g, c.spec("conv", layer))
    mixed = g.op(path, "Conv", [seen, kernel], group=size)
    rows = g.op(f"{path}/rows", "Transpose", [mixed], perm=[0, 2, 1])
    gated = g.op(f"{path}/gated", "Mul", [gate, rows])
    return c.linear(f"{path}/out_proj", gated, "conv_out", layer)
