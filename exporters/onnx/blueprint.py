"""A model as it will be written: its stored tensors, their places and the bytes of its graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from tenp_edge.exporters.onnx.builder import GraphBuilder
from tenp_edge.exporters.onnx.decoder import build_decoder
from tenp_edge.exporters.onnx.modes import IR_VERSION, way_of
from tenp_edge.exporters.onnx.stored import Fill, Place, Stored, place
from tenp_edge.models import ModelConfig
from tenp_edge.registry import ExportOptions


@dataclass(frozen=True)
class Blueprint:
    """What ``options`` make of ``config``. The graph is only built when its bytes are asked for:
    planning prices many widths by their stored tensors alone."""

    config: ModelConfig
    options: ExportOptions

    @cached_property
    def _sketch(self) -> GraphBuilder:
        return self._built(next(iter(way_of(self.options).graphs)), sketch=True)

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
        return {name: self._graph_bytes(name) for name in way_of(self.options).graphs}

    def _graph_bytes(self, name: str) -> bytes:
        builder = self._built(name, sketch=False)
        assert builder.stored == self.stored, f"{name} has weights of its own"
        graph = builder.graph("tenp-edge", way_of(self.options).opsets)
        for tensor, stored in self.stored.items():
            graph.initializers[tensor].const_value = _external(stored, self.places[tensor])
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="tenp-edge")
        data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
        return data

    def _built(self, name: str, sketch: bool) -> GraphBuilder:
        way, builder = way_of(self.options), GraphBuilder(sketch)
        lengths = way.graphs[name](self.options)
        build_decoder(builder, self.config, way.makers, lengths, self.options.latent_cache)
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
