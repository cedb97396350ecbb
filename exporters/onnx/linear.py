"""Linear layers, interchangeable: x (..., in) -> (..., out) by a weight of the checkpoint.

A maker says which tensors it stores, how the checkpoint's (out, in) matrix becomes them and which
nodes multiply. A quantisation is one more maker; the families know none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Protocol

import onnx_ir as ir

from tenp_edge.exporters.onnx.builder import FLOAT, GraphBuilder
from tenp_edge.exporters.onnx.stored import Fill, Sink, Stored, as_array
from tenp_edge.models import TensorSpec
from tenp_edge.source import ModelSource


class Linear(Protocol):
    """Multiplies ``x`` by the matrix ``weight`` (out, in) and adds ``bias`` (out,) if there is."""

    def __call__(
        self,
        g: GraphBuilder,
        path: str,
        x: ir.Value,
        weight: TensorSpec,
        bias: TensorSpec | None = None,
    ) -> ir.Value: ...


@dataclass(frozen=True)
class FloatLinear:
    """MatMul by the transposed matrix in float32.

    x (..., in) ── MatMul ── (Add bias) ── (..., out)
                     │
               weight (in, out)
    """

    def __call__(
        self,
        g: GraphBuilder,
        path: str,
        x: ir.Value,
        weight: TensorSpec,
        bias: TensorSpec | None = None,
    ) -> ir.Value:
        product = g.op(path, "MatMul", [x, transposed_weight(g, weight)])
        return add_bias(g, path, product, bias)


def add_bias(g: GraphBuilder, path: str, x: ir.Value, bias: TensorSpec | None) -> ir.Value:
    return x if bias is None else g.op(path, "Add", [x, plain_weight(g, bias)])


def plain_weight(g: GraphBuilder, spec: TensorSpec) -> ir.Value:
    """A tensor of the checkpoint as it is, in float32, under its own name."""
    if spec.name not in g.stored:
        g.fill(Fill((spec.name,), partial(_fill_plain, spec.name)))
    return g.weight(Stored(spec.name, FLOAT, spec.shape, part_of(spec)))


def transposed_weight(g: GraphBuilder, spec: TensorSpec) -> ir.Value:
    """A matrix of the checkpoint as MatMul takes it, (in, out), in float32."""
    name = f"{spec.name}.T"
    if name not in g.stored:
        g.fill(Fill((name,), partial(_fill_transposed, spec.name, name)))
    return g.weight(Stored(name, FLOAT, spec.shape[::-1], part_of(spec)))


def part_of(spec: TensorSpec) -> str:
    return "routed experts" if spec.part == "routed experts" else "other"


def _fill_plain(name: str, source: ModelSource, sink: Sink) -> None:
    row = 0
    for block in source.blocks(name):
        sink.put(name, as_array(block), row)
        row += len(block)


def _fill_transposed(name: str, stored: str, source: ModelSource, sink: Sink) -> None:
    column = 0
    for block in source.blocks(name):
        sink.put(stored, as_array(block).T, 0, column)
        column += len(block)
