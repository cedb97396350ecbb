"""A model as it will be written: its stored tensors, their places and the bytes of its graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import onnx
import onnx_ir as ir

from tenp_edge.calibration.activation_ranges import Ranges
from tenp_edge.calibration.imatrix import Importance
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.onnx.files.stored import Fill, Place, Stored, place
from tenp_edge.exporters.onnx.graph.builder import GraphBuilder
from tenp_edge.exporters.onnx.graph.decoder import build_decoder
from tenp_edge.exporters.onnx.graph.inputs import Lengths
from tenp_edge.exporters.onnx.linear.qdq import QdqLinear
from tenp_edge.exporters.onnx.modes import IR_VERSION, way_of
from tenp_edge.exporters.onnx.targets import activation_type, require_static, targets_of
from tenp_edge.exporters.onnx.usability import REPORT_NAME, usability_report
from tenp_edge.models import ModelConfig


@dataclass(frozen=True)
class Blueprint:
    """What ``options`` make of ``config``, activations quantised by ``ranges``; without them (they
    are measured late) scales are 1, which changes no size. ``imatrix`` as in `way_of`. The graph is
    only built when its bytes are asked for: planning prices many widths by their stored tensors
    alone."""

    config: ModelConfig
    options: ExportOptions
    ranges: Ranges | None = None
    imatrix: Importance | None = None

    @cached_property
    def _lengths(self) -> Mapping[str, Lengths]:
        return way_of(self.options).graphs(self.config, self.options)

    @cached_property
    def _sketch(self) -> GraphBuilder:
        return self._built(next(iter(self._lengths.values())), sketch=True)

    @property
    def stored(self) -> Mapping[str, Stored]:
        """Every tensor of the data files, in file order."""
        return self._sketch.stored

    @property
    def fills(self) -> list[Fill]:
        return self._sketch.fills

    @cached_property
    def places(self) -> dict[str, Place]:
        return place(self.stored.values(), self.options.shard_bytes)

    @cached_property
    def graphs(self) -> dict[str, bytes]:
        """Every graph file; their weights refer to the same data files."""
        return {
            name: proto.SerializeToString(deterministic=True)
            for name, proto in self._protos.items()
        }

    @cached_property
    def reports(self) -> dict[str, bytes]:
        """What was found about graphs with fixed shapes.

        Raises UserError for one that its targets would not take.
        """
        if not way_of(self.options).static:
            return {}
        for name, proto in self._protos.items():
            require_static(name, proto, targets_of(self.options.targets))
        return {REPORT_NAME: usability_report(self._protos)}

    @cached_property
    def _protos(self) -> dict[str, onnx.ModelProto]:
        return {name: self._proto(name, lengths) for name, lengths in self._lengths.items()}

    def _proto(self, name: str, lengths: Lengths) -> onnx.ModelProto:
        builder = self._built(lengths, sketch=False)
        assert builder.stored == self.stored, f"{name} has weights of its own"
        graph = builder.graph("tenp-edge", way_of(self.options).opsets)
        for tensor, stored in self.stored.items():
            graph.initializers[tensor].const_value = _external(stored, self.places[tensor])
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="tenp-edge")
        return ir.to_proto(model)

    def _built(self, lengths: Lengths, sketch: bool) -> GraphBuilder:
        way, builder = way_of(self.options, self.imatrix), GraphBuilder(sketch)
        makers = way.makers
        if way.calibrated:
            linear = QdqLinear(activation_type(self.options.targets), self.ranges)
            makers = replace(makers, linear=linear)
        build_decoder(builder, self.config, makers, lengths, self.options.latent_cache)
        return builder


def _external(stored: Stored, where: Place) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        where.file,
        where.offset,
        where.nbytes,
        stored.dtype,
        shape=ir.Shape(stored.shape),
        name=stored.name,
    )
