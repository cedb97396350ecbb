"""The modes and quantisations as tables: which makers write a graph, for which operator sets.

A mode is one row; a quantisation replaces the linear maker. What is not there yet is refused by
`check_mode` with the reason.
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
from tenp_edge.exporters.onnx.fixed import check_lengths, fixed_lengths
from tenp_edge.exporters.onnx.inputs import Lengths
from tenp_edge.exporters.onnx.linear import FloatLinear, Linear
from tenp_edge.exporters.onnx.targets import targets_of
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
MODE_NAMES = ("portable", "static", "ort-cpu")
QUANTS = ("none", "int8", "int4")


def mode_of(options: ExportOptions) -> Mode:
    """The mode that ``options`` name, which `check_mode` has seen."""
    return MODES[options.layout or MODE_NAMES[0]]


def check_mode(config: ModelConfig, options: ExportOptions) -> None:
    """Raise UserError for a mode or quantisation that cannot be written."""
    mode = options.layout or MODE_NAMES[0]
    for flag, value, known, done in (
        ("--mode", mode, MODE_NAMES, tuple(MODES)),
        ("--quant", options.quant, QUANTS, tuple(LINEARS)),
    ):
        if value not in known:
            raise UserError(f"ONNX has no {flag} '{value}'", f"{flag} {'|'.join(known)}")
        if value not in done:
            raise UserError(f"{flag} {value} is not written yet", f"{flag} {'|'.join(done)}")
    if MODES[mode].static:
        targets_of(options.targets)
        check_lengths(config, options)
    elif options.lengths is not None or options.targets:
        flags = "--batch, --length and --past" if options.lengths is not None else "--target"
        raise UserError(f"--mode {mode} has no fixed shapes for {flags}", "--mode static")
