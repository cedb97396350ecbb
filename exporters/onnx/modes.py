"""Every way to write a graph as a table: mode and quantisation -> makers and operator sets.

A new mode or quantisation is a row (or a few) here and the makers it names; no family and no other
file knows of it. What has no row is refused by `check_mode`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tenp_edge.errors import UserError
from tenp_edge.exporters.onnx import operators
from tenp_edge.exporters.onnx.companions import MODEL_NAME
from tenp_edge.exporters.onnx.context import Makers
from tenp_edge.exporters.onnx.dispatch_rows import dispatch_rows
from tenp_edge.exporters.onnx.inputs import Lengths
from tenp_edge.registry import ExportOptions

OPSET, IR_VERSION = 23, 11


def _free(options: ExportOptions) -> Lengths:
    return Lengths()


@dataclass(frozen=True)
class Way:
    """How one mode and quantisation writes a model.

    ``graphs``: file name -> dimensions of its inputs; several graphs share the data files.
    """

    makers: Makers
    opsets: Mapping[str, int]
    graphs: Mapping[str, Callable[[ExportOptions], Lengths]] = field(
        default_factory=lambda: {MODEL_NAME: _free}
    )


_PORTABLE = Makers(operators.rms_norm, operators.rotary, operators.attend, dispatch_rows)

# (mode, quantisation) -> way; the first of each is the default.
WAYS: dict[tuple[str, str], Way] = {
    ("portable", "none"): Way(_PORTABLE, {"": OPSET}),
}
MODES = tuple(dict.fromkeys(mode for mode, _ in WAYS))
QUANTS = tuple(dict.fromkeys(quant for _, quant in WAYS))


def mode_of(options: ExportOptions) -> str:
    return options.layout or MODES[0]


def way_of(options: ExportOptions) -> Way:
    return WAYS[mode_of(options), options.quant]


def check_mode(options: ExportOptions) -> None:
    """Raise UserError for a mode or quantisation that cannot be written."""
    mode = mode_of(options)
    if mode not in MODES:
        raise UserError(f"ONNX has no mode '{mode}'", f"--mode {'|'.join(MODES)}")
    quants = [quant for known, quant in WAYS if known == mode]
    if options.quant not in quants:
        raise UserError(
            f"ONNX mode {mode} has no quantisation '{options.quant}'",
            f"--quant {'|'.join(quants)}",
        )
