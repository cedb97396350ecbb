"""The modes and quantisations as tables: which makers write a graph, for which operator sets.

A mode is one row; a quantisation replaces the linear maker. What is not there yet is refused by
`check_mode` with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tenp_edge.errors import UserError
from tenp_edge.exporters.onnx import operators
from tenp_edge.exporters.onnx.context import Makers
from tenp_edge.exporters.onnx.dispatch_rows import dispatch_rows
from tenp_edge.exporters.onnx.linear import FloatLinear, Linear
from tenp_edge.models import ModelConfig
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
MODE_NAMES = ("portable", "static", "ort-cpu")
QUANTS = ("none", "int8", "int4")


def mode_of(options: ExportOptions) -> str:
    return options.layout or MODE_NAMES[0]


def check_mode(config: ModelConfig, options: ExportOptions) -> None:
    """Raise UserError for a mode or quantisation that cannot be written."""
    mode = mode_of(options)
    for flag, value, known, done in (
        ("--mode", mode, MODE_NAMES, tuple(MODES)),
        ("--quant", options.quant, QUANTS, tuple(LINEARS)),
    ):
        if value not in known:
            raise UserError(f"ONNX has no {flag} '{value}'", f"{flag} {'|'.join(known)}")
        if value not in done:
            raise UserError(f"{flag} {value} is not written yet", f"{flag} {'|'.join(done)}")
