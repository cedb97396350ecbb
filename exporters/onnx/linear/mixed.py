"""Linear layers of a plan's own types: every matrix float32, 8 bits or 4 bits in blocks.

One way of rounding serves all modes: MatMulNBits of com.microsoft for both, also where mode
portable has operators of plain ai.onnx for ``--quant int8``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from tenp_edge.calibration.imatrix import Importance, Squares
from tenp_edge.checkpoint.tensor_types import TensorTypes, other_key
from tenp_edge.exporters.onnx.graph.builder import GraphBuilder
from tenp_edge.exporters.onnx.linear.blocks import BlockLinear
from tenp_edge.exporters.onnx.linear.plain import FloatLinear, Linear
from tenp_edge.exporters.onnx.linear.quantise import Bytes, Floats, dequantise_blocks
from tenp_edge.exporters.onnx.linear.weighted import weighted_blocks
from tenp_edge.models import TensorSpec

FLOATS = "float32"
# Type -> bits of a code; the most precise first.
BITS = {"int8": 8, "int4": 4}
MIXED_TYPES = (FLOATS, *BITS)


@dataclass(frozen=True)
class Columns:
    """What the columns of each matrix are weighed by while it is rounded; ``imatrix`` None: all
    alike."""

    imatrix: Importance | None = None

    def of(self, spec: TensorSpec) -> Floats | None:
        squares = self._squares(spec)
        if squares is None or not squares.tokens:
            return None
        weights: Floats = squares.weights().numpy()
        return weights

    def _squares(self, spec: TensorSpec) -> Squares | None:
        if self.imatrix is None or spec.layer is None:
            return None
        if spec.expert is None:
            return self.imatrix.matrix(spec.layer, spec.role)
        part = spec.role.removeprefix("expert_")
        return self.imatrix.expert(spec.layer, spec.expert, part)


ALIKE = Columns()


@dataclass(frozen=True)
class MixedLinear(Linear):
    """The type of every matrix by ``types``, its columns weighed by ``columns``."""

    types: TensorTypes
    columns: Columns = ALIKE

    def product(self, g: GraphBuilder, path: str, x: ir.Value, weight: TensorSpec) -> ir.Value:
        return self._linear(weight).product(g, path, x, weight)

    def looked_up(self, g: GraphBuilder, path: str, ids: ir.Value, table: TensorSpec) -> ir.Value:
        return self._linear(table).looked_up(g, path, ids, table)

    def shares(self, table: TensorSpec) -> bool:
        return type_of(self.types, table) == FLOATS

    def _linear(self, spec: TensorSpec) -> Linear:
        kind = type_of(self.types, spec)
        if kind == FLOATS:
            return FloatLinear()
        return BlockLinear(BITS[kind], self._encoded, looks_up=True)

    def _encoded(self, rows: Floats, bits: int, spec: TensorSpec) -> tuple[Bytes, Floats]:
        return weighted_blocks(rows, bits, self.columns.of(spec))


def type_of(types: TensorTypes, spec: TensorSpec) -> str:
    """Float32 of what is never rounded."""
    if spec.expert is None or spec.layer is None:
        return types.others.get(other_key(spec.layer, spec.role), FLOATS)
    if spec.role.endswith("_bias"):
        return FLOATS
    return types.expert(spec.layer, spec.expert, spec.role.removeprefix("expert_"))


def type_names(stored: Iterable[str]) -> dict[str, str]:
    """Of stored tensors by their names: the type that each is of, or a part of; others left out."""
    names = set(stored)
    found: dict[str, str] = {}
    for kind, bits in BITS.items():
        for codes in (name for name in names if name.endswith(f".Q{bits}")):
            base = codes.removesuffix(f".Q{bits}")
            found |= {codes: kind, f"{base}.scales": kind}
    return found


def rounded(rows: Floats, kind: str, columns: Floats | None) -> Floats:
    """``rows`` as type ``kind`` stores them."""
    if kind == FLOATS:
        return rows
    codes, scales = weighted_blocks(rows, BITS[kind], columns)
    return dequantise_blocks(codes, scales, BITS[kind], rows.shape[1])
