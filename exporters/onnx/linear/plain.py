"""Linear layers, interchangeable: x (..., in) -> (..., out) by a weight of the checkpoint.

A maker says which tensors it stores, how the checkpoint's (out, in) matrix becomes them and which
nodes multiply. A quantisation is one more maker; the families know none of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.onnx.files.stored import Fill, Sink, Stored, as_array
from tenp_edge.exporters.onnx.graph.builder import FLOAT, GraphBuilder
from tenp_edge.models import TensorSpec


class Linear(ABC):
    """Multiplies ``x`` by the matrix ``weight`` (out, in) and adds ``bias`` (out,) if there is.

    x (..., in) ── product ── (Add bias ── shifted) ── (..., out)
    """

    def __call__(
        self,
        g: GraphBuilder,
        path: str,
        x: ir.Value,
        weight: TensorSpec,
        bias: TensorSpec | None = None,
    ) -> ir.Value:
        product = self.product(g, path, x, weight)
        if bias is None:
            return product
        return self.shifted(g, path, g.op(path, "Add", [product, plain_weight(g, bias)]), weight)

    @abstractmethod
    def product(self, g: GraphBuilder, path: str, x: ir.Value, weight: TensorSpec) -> ir.Value:
        """``x`` times ``weight``: the nodes, and the tensors that they take."""

    def looked_up(self, g: GraphBuilder, path: str, ids: ir.Value, table: TensorSpec) -> ir.Value:
        """The rows ``ids`` of the embedding ``table``, which is float32 in every ``--quant``."""
        return g.op(path, "Gather", [plain_weight(g, table), ids], axis=0)

    def shares(self, table: TensorSpec) -> bool:
        """Whether an output that is the embedding ``table`` multiplies by its floats as stored."""
        return False

    def shifted(self, g: GraphBuilder, path: str, x: ir.Value, weight: TensorSpec) -> ir.Value:
        """What becomes of the sum with a bias."""
        return x


@dataclass(frozen=True)
class FloatLinear(Linear):
    """MatMul by the transposed matrix in float32.

    x (..., in) ── MatMul ── (..., out)
                     │
               weight (in, out)
    """

    def product(self, g: GraphBuilder, path: str, x: ir.Value, weight: TensorSpec) -> ir.Value:
        return g.op(path, "MatMul", [x, transposed_weight(g, weight)])

    def shares(self, table: TensorSpec) -> bool:
        return True


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
