"""Quantised files are llama.cpp's own, tensor by tensor and byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny
import torch
from gguf_cases import random_plan
from llama_quantize import Floats, quantize

from tenp_edge.calibration import calibrate
from tenp_edge.checkpoint import Checkpoint
from tenp_edge.data import Domain
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.importance import Importance
from tenp_edge.models import ModelConfig
from tenp_edge.plan import CompressionPlan
from tenp_edge.progress import QUIET
from tenp_edge.registry import ExportOptions
from tenp_edge.source import ModelSource
from tenp_edge.statistics import Statistics

Make = Callable[..., Path]
QUANTISED = tuple(q for q in EXPORTER.quants if q not in ("F32", "F16", "BF16"))
# Rows of 256 fit K-quants, rows of 96 take every fallback; 18 layers reach every layer rule.
WIDE = {"hidden_size": 256, "num_attention_heads": 4, "head_dim": 64}
DEEP = WIDE | {"num_hidden_layers": 18}


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    def write(family: str, **changes: Any) -> Path:
        return tiny.make(tmp_path_factory.mktemp(family) / "model", family, **changes)

    return write


def tensors(file: Path) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def export(source: ModelSource, file: Path, quant: str, **options: Any) -> None:
    EXPORTER.write(source, ExportOptions(quant, **options), file, QUIET)


# -- types -----------------------------------------------------------------------------------------

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_moe": ("qwen3_moe", DEEP | {"num_experts": 5}),
    "eight experts": ("qwen3_moe", DEEP),
    "grouped": ("qwen3_moe", DEEP | {"num_experts": 6, "num_key_value_heads": 1}),
    "qwen2_moe": ("qwen2_moe", DEEP | {"shared_expert_intermediate_size": 256}),
    "olmoe": ("olmoe", DEEP | {"num_experts": 4}),
    "mixtral": ("mixtral", DEEP | {"num_local_experts": 8}),
    "deepseek_v2": ("deepseek_v2", WIDE | {"num_hidden_layers": 17, "head_dim": None}),
    "deepseek_v3": ("deepseek_v3", WIDE | {"num_hidden_layers": 17, "head_dim": None}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_recipes_are_llama_cpps(shape: str, make: Make, tmp_path: Path) -> None:
    family, changes = SHAPES[shape]
    checkpoint = Checkpoint(make(family, **changes))
    export(ModelSource(checkpoint), tmp_path / "f32.gguf", "F32")
    some = {"blk.0.attn_output.weight": np.ones(256, np.float32)}
    for quant in QUANTISED:
        for imatrix in (None, some):
            wanted = quantize(
                tmp_path / "f32.gguf", tmp_path / "none", quant, imatrix=imatrix, dry_run=True
            )
            options = ExportOptions(quant, "merged", imatrix=imatrix is not None)
            manifest = EXPORTER.manifest(checkpoint, checkpoint.config, options)
            assert {t.name: t.type for t in manifest.tensors} == wanted, quant


# -- bytes -----------------------------------------------------------------------------------------

UNREACHED = (1, 3)  # layer, expert


@pytest.fixture(scope="module")
def model(make: Make) -> Checkpoint:
    """Two layers wide enough for K-quants, in bf16 as real models are."""
    changes = WIDE | {"num_hidden_layers": 2, "moe_intermediate_size": 512, "num_experts": 4}
    changes |= {"shared_expert_intermediate_size": 256, "torch_dtype": "bfloat16"}
    return Checkpoint(make("qwen2_moe", **changes))


@pytest.fixture(scope="module")
def statistics(model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    generator = torch.Generator().manual_seed(5)
    domains = [
        Domain(name, torch.randint(0, tiny.VOCAB, (2, 40), generator=generator), torch.tensor(used))
        for name, used in (("code", [40, 31]), ("prose", [40, 40]))
    ]
    return calibrate(model, domains, tmp_path_factory.mktemp("work"), dtype="float32")


def merged_imatrix(
    importance: Importance, config: ModelConfig, names: Mapping[str, Any]
) -> dict[str, Floats]:
    """What llama-quantize would hand on for a merged file: experts stacked, means of squares."""
    found: dict[str, Floats] = {}
    roles = {"attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o"}
    roles |= {f"ffn_{p}_shexp": f"shared_{p}" for p in ("gate", "up", "down")}
    for layer in config.moe_layers:
        for projection in ("gate", "up", "down"):
            rows = [
                importance.expert(layer, expert, projection).weights()
                for expert in range(config.num_experts)
            ]
            found[f"blk.{layer}.ffn_{projection}_exps.weight"] = torch.stack(rows).numpy()
        for name, role in roles.items():
            squares = importance.matrix(layer, role)
            assert squares is not None
            found[f"blk.{layer}.{name}.weight"] = squares.weights().numpy()
    assert set(found) <= set(names)
    return found


@pytest.mark.parametrize("kind", ("whole", "uniform"))
@pytest.mark.parametrize("imatrix", (False, True))
def test_merged_bytes_are_llama_cpps(
    imatrix: bool, kind: str, model: Checkpoint, statistics: Statistics, tmp_path: Path
) -> None:
    plan = random_plan(model, kind)
    importance = Importance(statistics, plan)
    source = ModelSource(model, plan, importance)
    export(source, tmp_path / "f32.gguf", "F32", layout="merged")
    theirs = merged_imatrix(importance, source.config, tensors(tmp_path / "f32.gguf"))
    for quant in QUANTISED:
        judge = tmp_path / "judge.gguf"
        quantize(tmp_path / "f32.gguf", judge, quant, imatrix=theirs if imatrix else None)
        export(source, tmp_path / "ours.gguf", quant, layout="merged", imatrix=imatrix)
        ours, wanted = tensors(tmp_path / "ours.gguf"), tensors(judge)
        assert set(ours) == set(wanted)
        for name, tensor in wanted.items():
            assert ours[name].tensor_type == tensor.tensor_type, name
            assert ours[name].data.tobytes() == tensor.data.tobytes(), f"{quant} {name}"
