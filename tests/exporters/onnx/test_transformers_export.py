"""transformers' own ONNX exporter as a cross-check: another graph of the model, the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import tiny
from support.onnx_cases import IDS, Running, export, relative_rms
from transformers import AutoModelForCausalLM
from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v2"])
def test_both_exporters_agree(family: str, tmp_path: Path) -> None:
    """Of two layers: deepseek_v2's first is dense. Theirs takes seconds a layer."""
    base = tiny.make(tmp_path / "model", family, num_hidden_layers=2)
    export(ModelSource(Checkpoint(base)), tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="eager", experts_implementation="batched_mm"
    )
    ids = torch.from_numpy(IDS[:1])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    theirs = OnnxExporter().export(model.eval(), given, config=OnnxConfig(dynamic=False))
    wanted = theirs(**given).logits.numpy()
    assert relative_rms(Running(tmp_path / "ours", [0]).steps(IDS.shape[1]), wanted) < 1e-5
