"""A model as it will be written: its stored tensors, their places and the bytes of model.onnx."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import onnx_ir as ir

from tenp_edge.exporters.onnx.builder import GraphBuilder
from tenp_edge.exporters.onnx.decoder import build_decoder
from tenp_edge.exporters.onnx.modes import IR_VERSION, LINEARS, MODES, mode_of
from tenp_edge.exporters.onnx.stored import Fill, Place, Stored, place
from tenp_edge.models import ModelConfig
from tenp_edge.registry import ExportOptions

MODEL_NAME = "model.onnx"


@dataclass(frozen=True)
class Blueprint:
    """What ``options`` make of ``config``. The graph is only built when its bytes are asked for:
    planning prices many widths by their stored tensors alone."""

    config: ModelConfig
    options: ExportOptions

    @cached_property
    def _sketch(self) -> GraphBuilder:
        return self._built(sketch=True)

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
    def model_bytes(self) -> bytes:
        """model.onnx, its weights referring to the data files."""
        mode = MODES[mode_of(self.options)]
        builder = self._built(sketch=False)
        assert builder.stored == self.stored
        graph = builder.graph("tenp-edge", mode.opsets)
        for name, stored in self.stored.items():
            graph.initializers[name].const_value = _external(stored, self.places[name])
        model = ir.Model(graph, ir_version=IR_VERSION, producer_name="tenp-edge")
        return ir.to_proto(model).SerializeToString(deterministic=True)

    def _built(self, sketch: bool) -> GraphBuilder:
        builder = GraphBuilder(sketch)
        mode, linear = MODES[mode_of(self.options)], LINEARS[self.options.quant]
        build_decoder(builder, self.config, mode.with_linear(linear))
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
