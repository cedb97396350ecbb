"""Gemma 4's GELU, which ggml looks up: the table by itself, and everything else without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.exact_gelu import exact_llamacpp, exact_ours
from support.gguf_cases import TOKENS, Logits, assert_close, export, llama_logits, torch_logits
from support.runtime_cases import CheckpointOf, export_ragged

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.runtime.ggml.library import open_library
from tenp_edge.runtime.ggml.model import PerExpertModel

FAMILY = "gemma4_text"


def test_the_table_is_gelu_between_float16_numbers() -> None:
    """All 63,488 finite ones: to the last bit of GELU's float16 value, and of the one in float32
    that ggml takes 1 + tanh in, which is small where the argument is below zero."""
    table = open_library().half_table("ggml_table_gelu_f16")
    assert table is not None
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    exact = torch.nn.functional.gelu(halves.double(), approximate="tanh").half().numpy()
    finite = np.isfinite(halves.numpy())
    assert finite.sum() == 2**16 - 2 * 2**10
    arguments, found, wanted = (
        numbers[finite].astype(np.float64) for numbers in (halves.numpy(), table, exact)
    )
    last_bits = np.maximum(2**-10 * np.abs(wanted), 2**-24) + 2**-23 * np.abs(arguments)
    assert (np.abs(found - wanted) <= last_bits).all() and (found == wanted).mean() > 0.98


def test_without_the_table_f32_is_transformers(
    checkpoint_of: CheckpointOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The project's bar, 1e-4, for both runtimes and every layout."""
    checkpoint = checkpoint_of(FAMILY)
    plan = export_ragged(checkpoint, tmp_path / "ragged.gguf")
    export_ragged(checkpoint, tmp_path / "padded.gguf", layout="padded")
    export(ModelSource(Checkpoint(checkpoint)), tmp_path / "merged.gguf")
    cut, whole = (torch_logits(checkpoint, one, table=False) for one in (plan, None))
    assert_close(exact_ours(tmp_path / "ragged.gguf", TOKENS, monkeypatch), cut)
    assert_close(exact_llamacpp(tmp_path / "padded.gguf", TOKENS, monkeypatch), cut)
    assert_close(exact_llamacpp(tmp_path / "merged.gguf", TOKENS, monkeypatch), whole)


def test_with_the_table_f32_is_near_transformers(
    checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    """Untouched: as near as torch with that table is, which `assert_close` of families compares."""
    plan = export_ragged(checkpoint_of(FAMILY), tmp_path / "ragged.gguf")
    export_ragged(checkpoint_of(FAMILY), tmp_path / "padded.gguf", layout="padded")
    exact = torch_logits(checkpoint_of(FAMILY), plan, table=False)
    with PerExpertModel(tmp_path / "ragged.gguf", context=128, threads=1, kv_type="F32") as model:
        ours = model.logits(TOKENS)
    for found in (ours, llama_logits(tmp_path / "padded.gguf")):
        assert root_mean_square(found - exact) < 1e-3 * exact.std()
        assert np.abs(found - exact).max() < 5e-3 * exact.std()
    assert root_mean_square(torch_logits(checkpoint_of(FAMILY), plan) - exact) > 1e-4


def root_mean_square(wrong: Logits) -> float:
    return float(np.sqrt(np.square(wrong).mean()))
