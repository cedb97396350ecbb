"""YaRN whose range is not rounded: exact in our runtime, and said of a stock llama.cpp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from support import tiny
from support.gguf_cases import TOKENS, assert_close, export, llama_logits, torch_logits
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.gguf.padded_twin import GgufFile, write_padded_twin
from tenp_edge.runtime.gguf.yarn import frequency_divisors

# openai/gpt-oss-20b's, but for the length that it was trained on: so short a text would not show
# the difference there.
YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 32.0,
    "original_max_position_embeddings": 64,
    "rope_type": "yarn",
}
THETA = 150000.0


def make(directory: Path, *, truncate: bool) -> Checkpoint:
    scaling = YARN | {"truncate": truncate}
    model = tiny.make(directory, "gpt_oss", rope_scaling=scaling, rope_theta=THETA)
    return Checkpoint(model)


def test_divisors_are_transformers() -> None:
    scaling = YARN | {"original_max_position_embeddings": 4096, "rope_theta": THETA}
    plain = THETA ** (-np.arange(0, 64, 2) / 64)
    for truncate in (False, True):
        rope = scaling | {"truncate": truncate}
        config = AutoConfig.for_model("gpt_oss", head_dim=64, rope_parameters=rope)
        wanted, _ = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
        found = plain / frequency_divisors(64, THETA, 32.0, 4096, 32.0, 1.0, truncate=truncate)
        assert np.allclose(found, wanted.double().numpy(), rtol=1e-6, atol=0)


def test_our_runtime_is_exact_and_llama_cpp_rounds(tmp_path: Path) -> None:
    checkpoint = make(tmp_path / "model", truncate=False)
    source, own = ModelSource(checkpoint), tmp_path / "own.gguf"
    assert export(source, own, layout="per-expert").notes == ()
    wanted = torch_logits(checkpoint.path)
    with PerExpertModel(own, context=128, threads=1, kv_type="F32") as model:
        assert_close(model.logits(TOKENS), wanted)

    manifest = export(source, tmp_path / "merged.gguf", layout="merged")
    assert manifest.notes == (
        "llama.cpp rounds YaRN's range, the model does not (truncate = false): 3 of 16 rotations "
        "differ there, by up to 306%; --layout per-expert is exact",
    )
    rounded = torch_logits(make(tmp_path / "rounded", truncate=True).path)
    write_padded_twin(GgufFile(own), tmp_path / "twin.gguf")
    for file in ("merged.gguf", "twin.gguf"):
        found = llama_logits(tmp_path / file)
        assert_close(found, rounded)
        assert np.abs(found - wanted).max() > 0.1
