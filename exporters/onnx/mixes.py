"""Directories whose tensors take types of their own: what may be chosen, and what it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir
import torch

from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.tensor_types import TensorTypes, other_key
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import ExportData, ExportOptions
from tenp_edge.exporters.mixing import SampledRows, TypedMatrix
from tenp_edge.exporters.onnx.files.stored import as_array
from tenp_edge.exporters.onnx.graph.builder import GraphBuilder
from tenp_edge.exporters.onnx.graph.context import Makers
from tenp_edge.exporters.onnx.graph.decoder import build_decoder
from tenp_edge.exporters.onnx.graph.inputs import Lengths
from tenp_edge.exporters.onnx.linear import mixed
from tenp_edge.exporters.onnx.linear.mixed import BITS, FLOATS, MIXED_TYPES, Columns
from tenp_edge.exporters.onnx.linear.plain import Linear
from tenp_edge.exporters.onnx.linear.quantise import BLOCK
from tenp_edge.exporters.onnx.modes import mode_of, rules_of, way_of
from tenp_edge.models import ModelConfig, TensorSpec

_FLOAT_BYTES = 4


def tensor_bytes(rows: int, columns: int, kind: str) -> int:
    """What a matrix takes in the data file: floats, or whole blocks of codes with a scale each."""
    if kind == FLOATS:
        return _FLOAT_BYTES * rows * columns
    return rows * -(-columns // BLOCK) * (BLOCK * BITS[kind] // 8 + _FLOAT_BYTES)


def check_types(config: ModelConfig, options: ExportOptions) -> None:
    """Raise UserError unless ``options.types`` are types of ``config`` and can be written."""
    types = options.types
    if types is None:
        raise UserError(
            "--quant auto writes the types that a plan chose, and there is no plan with types",
            "--plan PLAN (tenp-edge compress MODEL --format onnx --ram SIZE -o OUT makes one), or "
            "--quant int8",
        )
    unknown = sorted(types.names - set(MIXED_TYPES))
    if unknown:
        raise UserError(
            f"the plan's types name '{unknown[0]}', which ONNX has not",
            "--quant int8, or plan again with --format onnx",
        )
    if not types.has_experts({layer: len(row) for layer, row in config.expert_widths.items()}):
        raise UserError("the plan's types do not have the experts of this model", "plan again")
    if {spec_key(spec) for spec in typed_specs(config)} - types.others.keys():
        raise UserError("the plan's types do not have the matrices of this model", "plan again")


def check_alike(options: ExportOptions) -> None:
    """Raise UserError where the mode wants one type for the matrices of an expert, and the plan
    gives them two."""
    types, mode = options.types, mode_of(options)
    if types is None or not rules_of(mode).alike:
        return
    for layer, row in types.gate_up.items():
        for expert, pair in enumerate(zip(row, types.down[layer], strict=True)):
            if len(set(pair)) > 1:
                raise UserError(
                    f"--mode {mode} has one type for the matrices of an expert: the plan gives "
                    f"expert {expert} of layer {layer} {pair[0]} and {pair[1]}",
                    "--mode portable, or plan again with this mode",
                )


@dataclass(frozen=True)
class _Noting(Linear):
    """Stores nothing and notes what it is asked to multiply by."""

    noted: list[TensorSpec] = field(default_factory=list)

    def product(self, g: GraphBuilder, path: str, x: ir.Value, weight: TensorSpec) -> ir.Value:
        self.noted.append(weight)
        return x

    def looked_up(self, g: GraphBuilder, path: str, ids: ir.Value, table: TensorSpec) -> ir.Value:
        if table.shape[1] % BLOCK == 0:
            self.noted.append(table)
        return ids

    def shares(self, table: TensorSpec) -> bool:
        return True


def typed_specs(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """Matrices outside the routed experts whose type may be chosen: whatever the graph's linear
    layers multiply by, and the embedding table, if its rows are whole blocks."""
    linear, portable = _Noting(), way_of(ExportOptions("none", "portable")).makers
    makers = Makers(portable.norm, portable.rotary, portable.attend, _no_experts, linear)
    build_decoder(GraphBuilder(sketch=True), config, makers, Lengths())
    return tuple(dict.fromkeys(linear.noted))


def _no_experts(
    c: object, path: str, x: ir.Value, ids: ir.Value, weights: ir.Value, layer: int
) -> ir.Value:
    return x


def spec_key(spec: TensorSpec) -> str:
    return other_key(spec.layer, spec.role)


def typed_matrices(config: ModelConfig) -> tuple[TypedMatrix, ...]:
    return tuple(_typed(spec) for spec in typed_specs(config))


def _typed(spec: TensorSpec) -> TypedMatrix:
    return TypedMatrix(spec_key(spec), spec.layer, spec.role, spec.shape)


def types_of(config: ModelConfig, quant: str) -> TensorTypes:
    """That of ``quant`` everywhere."""
    kind = quant if quant in BITS else FLOATS
    rows = {layer: (kind,) * len(row) for layer, row in config.expert_widths.items()}
    return TensorTypes(rows, rows, {spec_key(spec): kind for spec in typed_specs(config)})


def rounded(sample: SampledRows, kind: str) -> torch.Tensor:
    columns = None if sample.importance is None else as_array(sample.importance)
    return torch.from_numpy(mixed.rounded(as_array(sample.rows), kind, columns))


def sampled_matrices(
    source: ModelSource, options: ExportOptions, data: ExportData, rows: int
) -> Iterator[tuple[TypedMatrix, SampledRows]]:
    """About ``rows`` rows of each of `typed_matrices`, spread."""
    columns = Columns(data.imatrix if options.imatrix else None)
    for spec in typed_specs(source.config):
        starts = range(0, spec.shape[0], max(1, spec.shape[0] // rows))[:rows]
        picked = [source.read_rows(spec.name, start, start + 1) for start in starts]
        weights = columns.of(spec)
        importance = None if weights is None else torch.from_numpy(weights)
        yield _typed(spec), SampledRows(torch.cat(picked), importance)
