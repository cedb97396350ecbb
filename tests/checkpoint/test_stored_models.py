"""A whole quantised checkpoint, ours beside what transformers loads from the same files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from support import tiny
from support.quantised import LAYOUTS, quantise
from transformers import AutoModelForCausalLM, Mxfp4Config

from tenp_edge.checkpoint.files import Checkpoint, ExpertWeights

BF16 = {"torch_dtype": "bfloat16"}


def test_gpt_oss(tmp_path: Path) -> None:
    """MXFP4 stores rows, bf16 columns; gate's and up's are in turns in both."""
    model, layout = tiny.make(tmp_path / "model", "gpt_oss", **BF16), LAYOUTS["mxfp4 gpt-oss"]
    by_rows = replace(
        layout,
        encode=lambda matrices: layout.encode(matrices.mT),
        decode=lambda parts: layout.decode(parts).mT,
    )
    quantise(model, by_rows)
    loaded = AutoModelForCausalLM.from_pretrained(
        model, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16
    )
    for layer in range(3):
        theirs = loaded.model.layers[layer].mlp.experts
        for expert in range(8):
            gate_up, bias = theirs.gate_up_proj[expert], theirs.gate_up_proj_bias[expert]
            expected = ExpertWeights(
                gate_up[:, ::2].T,
                gate_up[:, 1::2].T,
                theirs.down_proj[expert].T,
                bias[::2],
                bias[1::2],
                theirs.down_proj_bias[expert],
            )
            assert same(Checkpoint(model).expert(layer, expert), expected)


def same(one: ExpertWeights, other: ExpertWeights) -> bool:
    """Bit for bit, biases included."""
    names = ("gate", "up", "down", "gate_bias", "up_bias", "down_bias")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)
