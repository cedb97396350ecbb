"""An ONNX directory as it runs in onnxruntime, in all the ways that a graph is run."""

from __future__ import annotations

from pathlib import Path

from tenp_edge.checkpoint.source import StoredModel
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import Findings, Judge, JudgeRequest
from tenp_edge.exporters.onnx.files.reading import OnnxWeights
from tenp_edge.exporters.onnx.graph_checks import check_graph
from tenp_edge.exporters.session_judging import (
    require_family,
    require_sizes,
    session_logits,
    tokenizers_agree,
)
from tenp_edge.models import ModelConfig
from tenp_edge.runtime.onnx.directory import read_directory
from tenp_edge.runtime.onnx.model import OnnxModel
from tenp_edge.runtime.opening import RunOptions, open_model

_SIZES = ("num_hidden_layers", "hidden_size", "vocab_size")


def judge(path: Path, request: JudgeRequest) -> Judge:
    """`Exporter.judge` of the directory ``path``."""
    files, config = read_directory(path), request.reference.config
    require_family(path, str(config.raw["model_type"]), files.config.get("model_type"))
    require_sizes(path, {name: (getattr(config, name), files.number(name)) for name in _SIZES})
    options = RunOptions(context=request.tokens.shape[1], threads=request.threads)
    # Opened and closed again: what is wrong shows before the long forwards, beside which the
    # weights need not lie in memory; the ways to run it are compared here for the same reason.
    with OnnxModel(path, context=options.context, threads=options.threads) as model:
        agrees = tokenizers_agree(model, request)
        stored = _read_back(path, config) if request.split else None
        findings = Findings(agrees, check_graph(request, model, stored))
    opened = session_logits(lambda: open_model(path, options), request)
    return Judge(f"{OnnxModel.runtime} ({files.mode})", opened, "export", findings)


def _read_back(path: Path, config: ModelConfig) -> StoredModel | None:
    try:
        return OnnxWeights(path, config)
    except UserError:
        return None  # The losses' note says why.
