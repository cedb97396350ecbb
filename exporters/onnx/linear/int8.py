"""Linear layers in int8 of plain ai.onnx: activations quantised anew in every run.

x (..., in) ── DynamicQuantizeLinear ──┬── MatMulInteger ── Cast ── Mul ──
                       │ scale         │ codes (in, out)            │
                       └───────────────┼──── Mul ───────────────────┘
                                 scales (out,)

One scale per output of the weights and one for all of x, as onnxruntime's quantize_dynamic writes
it; onnxruntime fuses the five nodes into one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.onnx.files.stored import Fill, Sink, Stored, as_array
from tenp_edge.exporters.onnx.graph.builder import FLOAT, GraphBuilder
from tenp_edge.exporters.onnx.linear.plain import Linear, part_of
from tenp_edge.exporters.onnx.linear.quantise import quantise_rows
from tenp_edge.models import TensorSpec

_INT8 = ir.DataType.INT8


@dataclass(frozen=True)
class DynamicLinear(Linear):
    """MatMulInteger of weights in int8, per channel, and activations in uint8, per tensor."""

    def product(self, g: GraphBuilder, path: str, x: ir.Value, weight: TensorSpec) -> ir.Value:
        codes, scales = int8_weight(g, weight)
        rounded, scale, zero = g.ops(path, "DynamicQuantizeLinear", [x], 3)
        whole = g.op(path, "MatMulInteger", [rounded, codes, zero])
        product = g.op(path, "Cast", [whole], to=FLOAT)
        both = g.op(f"{path}/scale", "Mul", [scale, scales])
        return g.op(path, "Mul", [product, both])


def int8_weight(g: GraphBuilder, spec: TensorSpec) -> tuple[ir.Value, ir.Value]:
    """A matrix as MatMul takes it: codes (in, out), symmetric, and a scale per output, (out,)."""
    names = f"{spec.name}.Q8.T", f"{spec.name}.scales"
    if names[0] not in g.stored:
        g.fill(Fill(names, partial(_fill, spec.name, names)))
    codes = Stored(names[0], _INT8, spec.shape[::-1], part_of(spec))
    return g.weight(codes), g.weight(Stored(names[1], FLOAT, spec.shape[:1], part_of(spec)))


def _fill(name: str, stored: tuple[str, str], source: ModelSource, sink: Sink) -> None:
    row = 0
    for block in source.blocks(name):
        codes, scales = quantise_rows(as_array(block))
        sink.put(stored[0], codes.T, 0, row)
        sink.put(stored[1], scales, 0, row)
        row += len(block)
