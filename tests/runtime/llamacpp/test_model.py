"""llama.cpp as a library: evaluation, refusals in its own words, peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import tiny
from support.gguf_cases import export, random_plan

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf.architectures import architecture
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.llamacpp.model import LlamaCppModel
from tenp_edge.runtime.memory.peak import measure_peak_rss

Make = Callable[[str], Path]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_stock_llama_cpp_says_at_once_that_a_per_expert_file_is_not_its(
    family: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    name = architecture(checkpoint.config).name
    file = tmp_path / "model.gguf"
    manifest = export(ModelSource(checkpoint, random_plan(checkpoint, "ragged")), file)
    assert manifest.layout == "per-expert"
    for vocab_only in (False, True):
        with pytest.raises(UserError) as caught:
            LlamaCppModel(file, vocab_only=vocab_only)
        assert str(caught.value) == (
            f"llama.cpp refuses model.gguf: unknown model architecture: 'tenp-{name}'\n"
            "try: tenp-edge run, or a file of --layout merged"
        )
    with PerExpertModel(file, context=64) as model:
        assert model.facts.name == name
        assert model.detokenize(model.tokenize("def f(x): return x")) == "def f(x): return x"


def test_logits_do_not_depend_on_batches(checkpoint_of: Make, tmp_path: Path) -> None:
    export(ModelSource(Checkpoint(checkpoint_of("mixtral"))), tmp_path / "model.gguf")
    tokens = list(range(1, 60))
    with LlamaCppModel(tmp_path / "model.gguf", context=64, threads=1, kv_type="F32") as model:
        whole = model.logits(tokens)
        assert np.array_equal(model.logits(tokens, first_position=50), whole[50:])
    with LlamaCppModel(
        tmp_path / "model.gguf", context=64, threads=1, kv_type="F32", ubatch=16
    ) as model:
        assert np.abs(model.logits(tokens, first_position=40) - whole[40:]).max() < 1e-4


def test_too_many_tokens_are_refused(checkpoint_of: Make, tmp_path: Path) -> None:
    export(ModelSource(Checkpoint(checkpoint_of("mixtral"))), tmp_path / "model.gguf")
    with (
        LlamaCppModel(tmp_path / "model.gguf", context=64, threads=1) as model,
        pytest.raises(UserError) as caught,
    ):
        model.logits([1] * 257)
    assert str(caught.value) == (
        "257 tokens do not fit into a context of 64\ntry: a larger --context or a shorter prompt"
    )


def test_runtime_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        LlamaCppModel(tmp_path / "none.gguf")
    assert str(caught.value) == (
        f"{tmp_path / 'none.gguf'} does not exist\ntry: the path of a GGUF file"
    )
    (tmp_path / "junk.gguf").write_bytes(b"not a model" * 10)
    with pytest.raises(UserError) as caught:
        LlamaCppModel(tmp_path / "junk.gguf")
    assert str(caught.value) == (
        "llama.cpp refuses junk.gguf: invalid magic characters: 'not ', expected 'GGUF'\n"
        "try: export the file again"
    )


def test_cut_file_is_refused(checkpoint_of: Make, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    size = export(ModelSource(Checkpoint(checkpoint_of("olmoe"))), file).file_bytes
    with file.open("rb+") as stream:
        stream.truncate(size // 2)
    with pytest.raises(
        UserError, match=r"^llama\.cpp refuses model\.gguf: .* corrupted or incompl"
    ):
        LlamaCppModel(file)


def test_peak_rss_counts_the_weights(tmp_path: Path) -> None:
    small = Checkpoint(tiny.make(tmp_path / "small", "qwen3_moe", num_hidden_layers=1))
    large = Checkpoint(
        tiny.make(tmp_path / "large", "qwen3_moe", hidden_size=256, moe_intermediate_size=2560)
    )
    peaks, sizes = [], []
    for checkpoint in (small, large):
        file = checkpoint.path / "model.gguf"
        sizes.append(export(ModelSource(checkpoint), file).file_bytes)
        peaks.append(measure_peak_rss(file, context=128, ubatch=32, kv_type="F16", threads=1))
    grown = sizes[1] - sizes[0]
    assert grown > 150 * 2**20
    assert 0.98 * grown < peaks[1] - peaks[0] < 1.1 * grown


def test_exporting_and_running_import_neither_transformers_nor_torch_needlessly() -> None:
    code = (
        "import sys; import tenp_edge.runtime.llamacpp.native as n; n.native(); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; "
        "import tenp_edge.exporters.gguf; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=_environment())


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[3])
    return os.environ | {"PYTHONPATH": root}
