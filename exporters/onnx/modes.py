"""The modes and quantisations as tables: which makers write a graph, for which operator sets.

A mode is one row; a quantisation replaces the linear maker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tenp_edge.errors import UserError
from tenp_edge.exporters.onnx import operators, static_operators
from tenp_edge.exporters.onnx.companions import DECODE_NAME, MODEL_NAME, PREFILL_NAME
from tenp_edge.exporters.onnx.context import Fixed, Makers
from tenp_edge.exporters.onnx.dispatch_dense import dispatch_dense
from tenp_edge.exporters.onnx.dispatch_rows import dispatch_rows
from tenp_edge.exporters.onnx.fixed import fixed_lengths
from tenp_edge.exporters.onnx.inputs import Lengths
from tenp_edge.exporters.onnx.linear import FloatLinear, Linear
from tenp_edge.models import ModelConfig
from tenp_edge.registry import ExportOptions

OPSET, IR_VERSION = 23, 11


@dataclass(frozen=True)
class Mode:
    """One way to write the graphs: their makers and the operator sets that those use.

    ``static``: every shape is a number, and there is one graph for prompts and one for decoding.
    """

    name: str
    makers: Makers
    opsets: Mapping[str, int]
    static: bool = False

    def graphs(self, config: ModelConfig, options: ExportOptions) -> Mapping[str, Lengths]:
        """The graph files of a directory and their lengths."""
        if not self.static:
            return {MODEL_NAME: Lengths()}
        fixed = fixed_lengths(config, options)
        return {
            name: Lengths.of(Fixed(fixed.batch, length, fixed.past))
            for name, length in ((PREFILL_NAME, fixed.length), (DECODE_NAME, 1))
        }

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
        Mode(
            "static",
            Makers(
                static_operators.rms_norm,
                static_operators.rotary,
                static_operators.attend,
                dispatch_dense,
                pads_values=False,
            ),
            {"": OPSET},
            static=True,
        ),
    )
}
LINEARS: dict[str, Linear] = {"none": FloatLinear()}


def mode_of(options: ExportOptions) -> Mode:
    """The mode that ``options`` name, which `check_mode` has seen."""
    return MODES[mode_name(options)]


def mode_name(options: ExportOptions) -> str:
    return options.layout or next(iter(MODES))


def check_mode(options: ExportOptions) -> None:
    """Raise UserError for a mode or quantisation that cannot be written."""
    mode = mode_name(options)
    for flag, what, value, known in (
        ("--mode", "mode", mode, tuple(MODES)),
        ("--quant", "quantisation", options.quant, tuple(LINEARS)),
    ):
        if value not in known:
            raise UserError(f"ONNX has no {what} '{value}'", f"{flag} {'|'.join(known)}")
    fixed = {
        "--batch, --length and --past": options.lengths is not None,
        "--target": bool(options.targets),
    }
    for flags, given in fixed.items():
        if given and not MODES[mode].static:
            raise UserError(f"--mode {mode} has no fixed shapes for {flags}", "--mode static")
