"""The modes and quantisations as tables: which makers write a graph, for which operator sets.

A mode is one row; a quantisation replaces the linear maker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tenp_edge.errors import UserError
from tenp_edge.exporters.onnx import operators
from tenp_edge.exporters.onnx.context import Makers
from tenp_edge.exporters.onnx.dispatch_rows import dispatch_rows
from tenp_edge.exporters.onnx.linear import FloatLinear, Linear
from tenp_edge.registry import ExportOptions

OPSET, IR_VERSION = 23, 11


@dataclass(frozen=True)
class Mode:
    """One way to write the graph: its makers and the operator sets that they use."""

    name: str
    makers: Makers
    opsets: Mapping[str, int]

    def with_linear(self, linear: Linear) -> Makers:
        return replace(self.makers, linear=linear)


MODES = {
    mode.name: mode
    for mode in (
        Mode(
            "portable",
            Makers(operators.rms_norm, operators.rotary, operators.attend, dispatch_rows),
            {"": OPSET},
        ),
    )
}
LINEARS: dict[str, Linear] = {"none": FloatLinear()}


def mode_of(options: ExportOptions) -> str:
    return options.layout or next(iter(MODES))


def check_mode(options: ExportOptions) -> None:
    """Raise UserError for a mode or quantisation that cannot be written."""
    for flag, what, value, known in (
        ("--mode", "mode", mode_of(options), tuple(MODES)),
        ("--quant", "quantisation", options.quant, tuple(LINEARS)),
    ):
        if value not in known:
            raise UserError(f"ONNX has no {what} '{value}'", f"{flag} {'|'.join(known)}")
