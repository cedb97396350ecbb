"""Linear layers in int8 for NPU compilers: every scale is fixed, and they fuse what stands between.

x (..., in) ── Q, DQ ──┐
codes (in, out) ── DQ ── MatMul ── Q, DQ ── (Add bias ── Q, DQ) ── (..., out)

Q is QuantizeLinear, DQ DequantizeLinear.
Weights have one scale per output and no zero point, activations one scale and zero point per
tensor, from the ranges that calibration text showed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from tenp_edge.calibration.activation_ranges import MatrixRange, Ranges, Span
from tenp_edge.exporters.onnx.graph.builder import GraphBuilder
from tenp_edge.exporters.onnx.linear.int8 import int8_weight
from tenp_edge.exporters.onnx.linear.plain import Linear
from tenp_edge.models import TensorSpec

_UNKNOWN = MatrixRange(Span(), Span(), Span())


@dataclass(frozen=True)
class QdqLinear(Linear):
    """``activation``: type of quantised activations, uint8 or uint16; without ``ranges`` their
    scales are 1. What several layers are given is quantised once."""

    activation: ir.DataType = ir.DataType.UINT8
    ranges: Ranges | None = None
    _given: dict[str, ir.Value] = field(default_factory=dict, compare=False)

    def product(self, g: GraphBuilder, path: str, x: ir.Value, weight: TensorSpec) -> ir.Value:
        codes, scales = int8_weight(g, weight)
        ranges = self._range(weight)
        matrix = g.op(f"{path}/weight", "DequantizeLinear", [codes, scales], axis=1)
        product = g.op(path, "MatMul", [self._once(g, path, x, ranges.given), matrix])
        return self._rounded(g, f"{path}/product", product, ranges.product)

    def shifted(self, g: GraphBuilder, path: str, x: ir.Value, weight: TensorSpec) -> ir.Value:
        return self._rounded(g, f"{path}/out", x, self._range(weight).output)

    def _range(self, weight: TensorSpec) -> MatrixRange:
        return _UNKNOWN if self.ranges is None else self.ranges[weight.name]

    def _once(self, g: GraphBuilder, path: str, x: ir.Value, span: Span) -> ir.Value:
        name = x.name or ""
        if name not in self._given:
            self._given[name] = self._rounded(g, f"{path}/in", x, span)
        return self._given[name]

    def _rounded(self, g: GraphBuilder, path: str, x: ir.Value, span: Span) -> ir.Value:
        """``x`` through QuantizeLinear and DequantizeLinear."""
        scale, zero = affine(span, self.activation)
        # Named, not shared by value: the size of a graph must not depend on what was measured.
        how = [g.constant(scale, f"{path}/scale"), g.constant(zero, f"{path}/zero_point")]
        codes = g.op(path, "QuantizeLinear", [x, *how])
        return g.op(path, "DequantizeLinear", [codes, *how])


def affine(span: Span, dtype: ir.DataType) -> tuple[np.ndarray, np.ndarray]:
    """Scale (float32) and zero point of codes that cover ``span``, in which zero is a code."""
    kind = dtype.numpy()
    codes = np.iinfo(kind).max
    scale = np.float32((span.most - span.least) / codes)
    if not np.isfinite(scale) or scale < np.finfo(np.float32).tiny:
        return np.asarray(1, np.float32), np.asarray(0, kind)
    zero = np.clip(np.rint(-span.least / scale), 0, codes)
    return np.asarray(scale), np.asarray(zero, kind)
