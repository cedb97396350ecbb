"""Linear layers as MatMulNBits (com.microsoft): blocks of 32 weights with a scale each.

x (..., in) ── MatMulNBits ── (..., out)
                 │
           codes (out, blocks, bytes), scales (out, blocks)

Inputs may have any width: the last block is padded. accuracy_level 4 lets the kernel quantise the
activations to int8, which is what makes it fast on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.onnx.files.stored import Fill, Sink, Stored, as_array
from tenp_edge.exporters.onnx.graph.builder import FLOAT, GraphBuilder
from tenp_edge.exporters.onnx.linear.plain import Linear, part_of
from tenp_edge.exporters.onnx.linear.quantise import BLOCK, Bytes, Floats, quantise_blocks
from tenp_edge.models import TensorSpec

CONTRIB = "com.microsoft"
ACCURACY_LEVEL = 4
UINT8 = ir.DataType.UINT8


def _plain(rows: Floats, bits: int, spec: TensorSpec) -> tuple[Bytes, Floats]:
    return quantise_blocks(rows, bits)


# Rows of a matrix, (rows, columns), and the bits of a code -> codes and scales.
Encode = Callable[[Floats, int, TensorSpec], tuple[Bytes, Floats]]


@dataclass(frozen=True)
class BlockLinear(Linear):
    """MatMulNBits with weights of ``bits`` bits, 4 or 8, whose codes ``encode`` chooses.

    ``looks_up``: the rows of an embedding table are taken from such blocks, too.
    """

    bits: int
    encode: Encode = _plain
    looks_up: bool = False

    def product(self, g: GraphBuilder, path: str, x: ir.Value, weight: TensorSpec) -> ir.Value:
        rows, columns = weight.shape
        return g.op(
            path,
            "MatMulNBits",
            [x, *self._weights(g, weight)],
            CONTRIB,
            N=rows,
            K=columns,
            bits=self.bits,
            block_size=BLOCK,
            accuracy_level=ACCURACY_LEVEL,
        )

    def looked_up(self, g: GraphBuilder, path: str, ids: ir.Value, table: TensorSpec) -> ir.Value:
        """GatherBlockQuantized takes the codes of a row side by side: rows must be whole blocks."""
        if not self.looks_up:
            return super().looked_up(g, path, ids, table)
        codes, scales = self._weights(g, table)
        rows = g.op(f"{path}/rows", "Reshape", [codes, [table.shape[0], -1]])
        return g.op(
            path,
            "GatherBlockQuantized",
            [rows, ids, scales],
            CONTRIB,
            bits=self.bits,
            block_size=BLOCK,
            gather_axis=0,
            quantize_axis=1,
        )

    def _weights(self, g: GraphBuilder, spec: TensorSpec) -> tuple[ir.Value, ir.Value]:
        names = f"{spec.name}.Q{self.bits}", f"{spec.name}.scales"
        if names[0] not in g.stored:
            g.fill(Fill(names, partial(_fill, spec, names, self.bits, self.encode)))
        rows, blocks = spec.shape[0], -(-spec.shape[1] // BLOCK)
        codes = Stored(names[0], UINT8, (rows, blocks, BLOCK * self.bits // 8), part_of(spec))
        return g.weight(codes), g.weight(Stored(names[1], FLOAT, (rows, blocks), part_of(spec)))


def _fill(
    spec: TensorSpec,
    stored: tuple[str, str],
    bits: int,
    encode: Encode,
    source: ModelSource,
    sink: Sink,
) -> None:
    row = 0
    for block in source.blocks(spec.name):
        codes, scales = encode(as_array(block), bits, spec)
        sink.put(stored[0], codes.reshape(-1, codes.shape[-1]), row * codes.shape[1])
        sink.put(stored[1], scales, row)
        row += len(block)
