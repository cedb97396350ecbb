"""Quantised ONNX directories read back: their weights in a model that torch can run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import torch
from onnx.numpy_helper import to_array
from support.onnx_cases import IDS, MASK, POSITIONS, Floats, Running, relative_rms
from torch import nn

from tenp_edge.checkpoint.files import ExpertWeights
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.tensor_types import TensorTypes, types_of_json
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.onnx import EXPORTER
from tenp_edge.exporters.onnx.exporter import OnnxExporter
from tenp_edge.exporters.onnx.files.decoding import decoded, output_matrix
from tenp_edge.exporters.onnx.linear.mixed import MIXED_TYPES
from tenp_edge.forward.transformers_model import model_of
from tenp_edge.models import ModelConfig

assert isinstance(EXPORTER, OnnxExporter)
ONNX: OnnxExporter = EXPORTER

# What rounding the activations to int8 may do to the logits of tiny random models, routers that
# choose another expert included; measured 0.010 to 0.048 over the families, and 0.082 where norms
# behind the experts bring whatever they put out to one size.
ROUNDED, ROUNDED_AND_NORMED = 0.06, 0.1


def assert_close(directory: Path, wanted: Floats, bar: float) -> None:
    """Prefill and cached decode of one prompt against ``wanted``."""
    for tokens in ((24,), (20, 1, 1, 1, 1)):
        assert relative_rms(Running(directory, [0]).steps(*tokens), wanted[:1]) < bar


def float_activations(directory: Path) -> None:
    """Let the kernels of 4 bits keep their activations in float: only the weights are rounded."""
    model = onnx.load_model(directory / "model.onnx", load_external_data=False)
    _set_level(model.graph)
    onnx.save_model(model, directory / "model.onnx")


def _set_level(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 0
            if attribute.type == onnx.AttributeProto.GRAPH:
                _set_level(attribute.g)


def stored_arrays(directory: Path) -> dict[str, npt.NDArray[Any]]:
    """Every weight of the data files."""
    model = onnx.load_model(directory / "model.onnx", load_external_data=False)
    kept = [tensor.name for tensor in model.graph.initializer if tensor.external_data]
    whole = onnx.load_model(directory / "model.onnx")
    return {t.name: to_array(t) for t in whole.graph.initializer if t.name in set(kept)}


def mix(config: ModelConfig, alike: bool = False) -> TensorTypes:
    """Every matrix takes the next type; ``alike``: those of an expert together."""
    whole = ONNX.types_of(config, ExportOptions("int8"))

    def rows(start: int) -> dict[int, tuple[str, ...]]:
        given = whole.gate_up.items()
        return {n: tuple(_next(start + n + e) for e in range(len(row))) for n, row in given}

    others = {key: _next(number) for number, key in enumerate(whole.others)}
    return TensorTypes(rows(0), rows(0 if alike else 1), others)


def _next(number: int) -> str:
    return MIXED_TYPES[number % len(MIXED_TYPES)]


class WrittenSource(ModelSource):
    """``source`` with the weights that ``directory`` really holds."""

    def __init__(self, source: ModelSource, directory: Path) -> None:
        super().__init__(source.checkpoint, source.plan)
        self.arrays = stored_arrays(directory)
        raw = json.loads((directory / "tenp.json").read_text()).get("types")
        counts = {layer: len(row) for layer, row in self.config.expert_widths.items()}
        self.types = None if raw is None else types_of_json(raw, counts)

    def read(self, name: str) -> torch.Tensor:
        given = self.arrays, self.arrays.__getitem__, self.config, self.tensors[name]
        return torch.from_numpy(decoded(*given, types=self.types).copy())

    def expert(self, layer: int, expert: int) -> ExpertWeights:
        return ExpertWeights(*map(self.read, self.config.expert_tensors(layer, expert)))


def written_logits(source: ModelSource, directory: Path) -> Floats:
    """Of IDS with the written weights, dequantised, in transformers: (4, 24, vocabulary)."""
    written = WrittenSource(source, directory)
    model = model_of(written, torch.float32)
    if source.config.tie_word_embeddings:
        spec = written.tensors["model.embed_tokens.weight"]
        output = output_matrix(written.arrays, written.arrays.__getitem__, written.config, spec)
        model.lm_head.weight = nn.Parameter(torch.from_numpy(output.copy()))
    model.config._attn_implementation = "eager"
    given = {"attention_mask": MASK, "position_ids": POSITIONS}
    tensors = {name: torch.from_numpy(value) for name, value in given.items()}
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(torch.from_numpy(IDS), **tensors).logits
    return logits.numpy()
