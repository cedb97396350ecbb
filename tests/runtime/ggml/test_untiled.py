"""A prompt's products in types that ggml has no tiled kernel of: the same bits, through the
extension."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support import tiny
from support.gguf_cases import TOKENS, export, random_plan
from support.runtime_cases import build_extension

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.runtime.ggml import untiled
from tenp_edge.runtime.ggml.model import PerExpertModel


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_ggmls_numbers(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Q5_K_M in narrow rows is Q5_1; experts without and with biases, gate and up apart and side by
    side, one thread and three, all tokens' logits and the last one's."""
    if not build_extension(tmp_path):
        return  # Where there is no compiler, there is no kernel.
    model = Checkpoint(tiny.make(tmp_path / "model", family))
    file, used = tmp_path / "model.gguf", Counter[bool]()
    export(ModelSource(model, random_plan(model, "ragged")), file, "Q5_K_M", "per-expert")
    kernel = untiled.BranchProducts._kernel

    def counted(self: untiled.BranchProducts, item: untiled.ggml.Tensor) -> int:
        found = kernel(self, item)
        used[bool(found)] += 1
        return found

    tokens = (TOKENS * 3)[:97]
    with PerExpertModel(file, use_extension=False, context=256, threads=1) as plain:
        wanted, last = plain.logits(tokens).copy(), _evaluated(plain, tokens)
    monkeypatch.setattr(untiled.BranchProducts, "_kernel", counted)
    for threads in (1, 3):
        with PerExpertModel(file, context=256, threads=threads) as fast:
            assert np.array_equal(fast.logits(tokens), wanted)
            assert np.array_equal(_evaluated(fast, tokens), last)
    assert used[True] > 0


def _evaluated(model: PerExpertModel, tokens: list[int]) -> np.ndarray:
    model.reset()
    return model.evaluate(tokens).copy()
