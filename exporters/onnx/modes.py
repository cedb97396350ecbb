"""Every way to write a graph as a table: mode and quantisation -> makers and operator sets.

A new mode or quantisation is a row (or a few) here and the makers it names; no family and no other
file knows of it. What has no row is refused by `check_mode`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

from tenp_edge.calibration.imatrix import Importance
from tenp_edge.checkpoint.tensor_types import AUTO, TensorTypes
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ExportOptions, WidthLimits
from tenp_edge.exporters.mixing import LayoutRules
from tenp_edge.exporters.onnx.files.companions import DECODE_NAME, MODEL_NAME, PREFILL_NAME
from tenp_edge.exporters.onnx.fixed_lengths import fixed_lengths
from tenp_edge.exporters.onnx.graph import grouped_query, operators, static_operators
from tenp_edge.exporters.onnx.graph.context import Fixed, Makers
from tenp_edge.exporters.onnx.graph.dispatch_dense import dispatch_dense
from tenp_edge.exporters.onnx.graph.dispatch_rows import dispatch_rows
from tenp_edge.exporters.onnx.graph.inputs import Lengths
from tenp_edge.exporters.onnx.graph.mixed_tiers import MixedTiers
from tenp_edge.exporters.onnx.graph.tiers import FloatTier, QuantisedTier, TierMaker, dispatch_tiers
from tenp_edge.exporters.onnx.linear.blocks import CONTRIB, BlockLinear
from tenp_edge.exporters.onnx.linear.int8 import DynamicLinear
from tenp_edge.exporters.onnx.linear.mixed import Columns, MixedLinear
from tenp_edge.exporters.onnx.linear.qdq import QdqLinear
from tenp_edge.exporters.onnx.linear.quantise import BLOCK
from tenp_edge.models import ModelConfig
from tenp_edge.models.family import Activation

OPSET, IR_VERSION = 23, 11
MOST_WIDTHS = 8
ANY_WIDTH = WidthLimits()
_ANY_ACTIVATION: frozenset[Activation] = frozenset(get_args(Activation))
_TIER_ACTIVATIONS: frozenset[Activation] = frozenset({"silu", "swiglu_oai"})


@dataclass(frozen=True)
class Way:
    """How one mode and quantisation writes a model.

    ``static``: every shape is a number; one graph for prompts and one for decoding share the data
    files. ``calibrated``: activations have fixed scales, from ranges that are measured on text.
    ``widths``: their multiple is that of the hidden size too; each is a node per layer.
    ``activations``: of experts, that it can write.
    """

    makers: Makers
    opsets: Mapping[str, int]
    static: bool = False
    calibrated: bool = False
    widths: WidthLimits = ANY_WIDTH
    activations: frozenset[Activation] = frozenset({"silu"})

    def graphs(self, config: ModelConfig, options: ExportOptions) -> Mapping[str, Lengths]:
        """File name -> dimensions of its inputs."""
        if not self.static:
            return {MODEL_NAME: Lengths()}
        fixed = fixed_lengths(config, options)
        return {
            name: Lengths.of(Fixed(fixed.batch, length, fixed.past))
            for name, length in ((PREFILL_NAME, fixed.length), (DECODE_NAME, 1))
        }


_PORTABLE = Makers(operators.rms_norm, operators.rotary, operators.attend, dispatch_rows)
_STATIC = Makers(
    static_operators.rms_norm,
    static_operators.rotary,
    static_operators.attend,
    dispatch_dense,
    pads_values=False,
)

_ORT_CPU = replace(_PORTABLE, attend=grouped_query.attend, count_keys=grouped_query.count_keys)
_WITH_CONTRIB = {"": OPSET, CONTRIB: 1}


def _blocks(makers: Makers, bits: int) -> Makers:
    return replace(makers, linear=BlockLinear(bits))


def _tiers(makers: Makers, maker: TierMaker) -> Makers:
    return replace(makers, dispatch=partial(dispatch_tiers, maker))


def _quantised_ort_cpu(bits: int) -> Way:
    makers = _blocks(_tiers(_ORT_CPU, QuantisedTier(bits)), bits)
    widths = WidthLimits(BLOCK, MOST_WIDTHS)
    return Way(makers, _WITH_CONTRIB, widths=widths, activations=_TIER_ACTIVATIONS)


# (mode, quantisation) -> way; the first of each is the default.
WAYS: dict[tuple[str, str], Way] = {
    ("portable", "none"): Way(_PORTABLE, {"": OPSET}, activations=_ANY_ACTIVATION),
    ("portable", "int8"): Way(
        replace(_PORTABLE, linear=DynamicLinear()), {"": OPSET}, activations=_ANY_ACTIVATION
    ),
    ("portable", "int4"): Way(_blocks(_PORTABLE, 4), _WITH_CONTRIB, activations=_ANY_ACTIVATION),
    ("static", "none"): Way(_STATIC, {"": OPSET}, static=True),
    ("static", "int8"): Way(
        replace(_STATIC, linear=QdqLinear()), {"": OPSET}, static=True, calibrated=True
    ),
    ("ort-cpu", "none"): Way(
        _tiers(_ORT_CPU, FloatTier()),
        _WITH_CONTRIB,
        widths=WidthLimits(most=MOST_WIDTHS),
        activations=_TIER_ACTIVATIONS,
    ),
    ("ort-cpu", "int8"): _quantised_ort_cpu(8),
    ("ort-cpu", "int4"): _quantised_ort_cpu(4),
}
MODES = tuple(dict.fromkeys(mode for mode, _ in WAYS))
FIXED_MODES = tuple(dict.fromkeys(mode for (mode, _), way in WAYS.items() if way.static))
_NO_TYPES = TensorTypes({}, {}, {})
QUANTS = tuple(dict.fromkeys(quant for _, quant in WAYS))


def mode_of(options: ExportOptions) -> str:
    return options.layout or MODES[0]


def way_of(options: ExportOptions, imatrix: Importance | None = None) -> Way:
    """``imatrix`` weighs columns where a plan chose the types."""
    mode = mode_of(options)
    if options.quant != AUTO:
        return WAYS[mode, options.quant]
    types, columns = options.types or _NO_TYPES, Columns(imatrix)
    makers = replace(WAYS[mode, "int4"].makers, linear=MixedLinear(types, columns))
    if rules_of(mode).alike:
        makers = replace(makers, dispatch=MixedTiers(types, columns))
    return replace(WAYS[mode, "int4"], makers=makers)


def rules_of(mode: str) -> LayoutRules:
    """Types of a plan's own take the operators of int4. One for all experts of a node has one type
    for all their matrices."""
    way = WAYS.get((mode, "int4"))
    if way is None:
        return LayoutRules(mixes=False)
    return LayoutRules(alike=way.widths.most is not None, nodes_by_types=True)


def check_mode(options: ExportOptions) -> None:
    """Raise UserError for a mode or quantisation that cannot be written."""
    mode = mode_of(options)
    if mode not in MODES:
        raise UserError(f"ONNX has no mode '{mode}'", f"--mode {'|'.join(MODES)}")
    quants = [quant for known, quant in WAYS if known == mode]
    mixed = options.quant == AUTO and rules_of(mode).mixes
    if options.quant not in quants and not mixed:
        raise UserError(
            f"ONNX mode {mode} has no quantisation '{options.quant}'",
            f"--quant {'|'.join(quants)}",
        )
    fixed = {
        "--batch, --length and --past": options.lengths is not None,
        "--target": bool(options.targets),
    }
    for flags, is_set in fixed.items():
        if is_set and not way_of(options).static:
            raise UserError(f"--mode {mode} has no fixed shapes for {flags}", "--mode static")
