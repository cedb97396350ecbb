"""The name of a per-expert file's architecture, and its tokenizer under llama.cpp's own name."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from support import tiny
from support.byte_level_cases import byte_level, spaced_before_capitals, vocabulary_file
from support.gguf_cases import TOKENS
from support.runtime_cases import as_older, export_ragged
from support.tokenizer_cases import HARD

from tenp_edge.runtime.gguf import tokenizer_file as module
from tenp_edge.runtime.gguf.header import mapped, read_header
from tenp_edge.runtime.gguf.padded_twin import GgufFile, write_padded_twin
from tenp_edge.runtime.gguf.tokenizer_file import tokenizer_file
from tenp_edge.runtime.llamacpp.model import LlamaCppModel
from tenp_edge.runtime.opening import RunOptions, open_model

Make = Callable[[str], Path]
TEXT = "def f(x):\n    return x"


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_older_files_still_open(family: str, checkpoint_of: Make, tmp_path: Path) -> None:
    export_ragged(checkpoint_of(family), tmp_path / "new.gguf")
    as_older(tmp_path / "new.gguf", tmp_path / "old.gguf")
    old, new = (
        read_header(tmp_path / f"{name}.gguf").fields["general.architecture"]
        for name in ("old", "new")
    )
    assert new == f"tenp-{old}"
    found = []
    for name in ("old", "new"):
        options = RunOptions(context=128, threads=1, kv_type="F32")
        with open_model(tmp_path / f"{name}.gguf", options) as model:
            assert model.runtime == "tenp-edge (per-expert)"
            assert model.detokenize(model.tokenize(TEXT)) == TEXT
            found.append(model.logits(TOKENS))
    assert np.array_equal(*found)


def test_the_twin_of_an_older_file(checkpoint_of: Make, tmp_path: Path) -> None:
    export_ragged(checkpoint_of("mixtral"), tmp_path / "new.gguf")
    as_older(tmp_path / "new.gguf", tmp_path / "old.gguf")
    for name in ("new", "old"):
        write_padded_twin(GgufFile(tmp_path / f"{name}.gguf"), tmp_path / f"{name}-twin.gguf")
    twin = (tmp_path / "new-twin.gguf").read_bytes()
    assert twin == (tmp_path / "old-twin.gguf").read_bytes()
    with LlamaCppModel(tmp_path / "new-twin.gguf", context=64, threads=1) as model:
        assert model.detokenize(model.tokenize(TEXT)) == TEXT


@pytest.mark.parametrize("descriptors", [True, False])
def test_the_tokenizer_file_is_stock_and_leaves_nothing(
    descriptors: bool, checkpoint_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where an open file can be named it has no other name, so not even a kill leaves it."""
    export_ragged(checkpoint_of("qwen3_moe"), tmp_path / "model.gguf")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    if not descriptors:
        monkeypatch.setattr(module, "_DESCRIPTORS", tmp_path / "none")
    header = read_header(tmp_path / "model.gguf")
    with mapped(tmp_path / "model.gguf") as memory, tokenizer_file(header, memory) as file:
        assert any(scratch.iterdir()) != descriptors
        check_stock(file, memory)
    assert not any(scratch.iterdir())


def check_stock(file: Path, memory: mmap.mmap) -> None:
    reader = GGUFReader(file)
    assert not reader.tensors
    assert reader.fields["general.architecture"].contents() == "qwen3moe"
    assert reader.fields["qwen3moe.context_length"].contents() == 512
    assert not any("tenp" in key for key in reader.fields)
    with LlamaCppModel(file, vocab_only=True) as model:
        assert model.detokenize(model.tokenize(TEXT)) == TEXT
    assert file.stat().st_size < len(memory)


def test_marks_stay_with_their_letters(checkpoint_of: Make, tmp_path: Path) -> None:
    """In our own runtime gpt-oss reads Hindi, Arabic and Thai in the tokens it was trained on."""
    text = spaced_before_capitals(HARD, ascii_too=False)
    tokenizer = byte_level(tmp_path, "gpt-4o", crossing=text)
    stock = vocabulary_file(tmp_path, checkpoint_of("qwen3_moe"), 20000)
    wanted = tokenizer.encode(text).ids
    with LlamaCppModel(stock, vocab_only=True) as model:
        assert model.tokenize(text) != wanted
    with mapped(stock) as memory, tokenizer_file(read_header(stock), memory) as file:
        assert GGUFReader(file).fields["tokenizer.ggml.pre"].contents() == "granite-embed-multi-97m"
        with LlamaCppModel(file, vocab_only=True) as model:
            assert model.tokenize(text) == wanted
            assert model.detokenize(wanted) == text
