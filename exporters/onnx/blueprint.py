"""A model as it will be written: its stored tensors, their places and the bytes of its graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx
import onnx_ir as ir

from tenp_edge.exporters.onnx.builder import GraphBuilder
from tenp_edge.exporters.onnx.decoder import build_decoder
from tenp_edge.exporters.onnx.inputs import Lengths
from tenp_edge.exporters.onnx.modes import IR_VERSION, LINEARS, mode_of
from tenp_edge.exporters.onnx.stored import Fill, Place, Stored, place
from tenp_edge.exporters.onnx.targets import require_static, targets_of
from tenp_edge.exporters.onnx.usability import REPORT_NAME, usability_report
from tenp_edge.models import ModelConfig
from tenp_edge.registry import ExportOptions


@dataclass(frozen=True)
class Blueprint:
    """What ``options`` make of ``config``. The graph is only built when its bytes are asked for:
    planning prices many widths by their stored tensors alone."""

    config: ModelConfig
    options: ExportOptions

    @cached_property
    def graphs(self) -> Mapping[str, Lengths]:
        """The graph files and their lengths; all of them read the same weights."""
        return mode_of(self.options).graphs(self.config, self.options)

    @cached_property
    def _sketch(self) -> GraphBuilder:
        return self._built(next(iter(self.graphs.values())), sketch=True)

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
    def graph_files(self) -> Mapping[str, bytes]:
        """Every graph file, its weights in the data files, and what was found about them.

        Raises UserError for a static graph that its targets would not take.
        """
        protos = {name: self._proto(lengths) for name, lengths in self.graphs.items()}
        files = {
            name: proto.SerializeToString(deterministic=True) for name, proto in protos.items()
        }
        if mode_of(self.options).static:
            for name, proto in protos.items():
                require_static(name, proto, targets_of(self.options.targets))
            files[REPORT_NAME] = usability_report(protos)
        return files

    def _proto(self, lengths: Lengths) -> onnx.ModelProto:
        mode = mode_of(self.options)
        builder = self._built(lengths, sketch=False)
        assert builder.stored == self.stored
        graph = builder.graph("tenp-edge", mode.opsets)
        for name, stored in self.stored.items():
            graph.initializers[name].const_value = _external(stored, self.places[name])
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="tenp-edge")
        return ir.to_proto(model)

    def _built(self, lengths: Lengths, sketch: bool) -> GraphBuilder:
        builder = GraphBuilder(sketch)
        mode, linear = mode_of(self.options), LINEARS[self.options.quant]
        makers, latent = mode.with_linear(linear), self.options.latent_cache
        build_decoder(builder, self.config, makers, lengths, latent)
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
