"""A file made of another GGUF keeps that one's metadata, with ours beside it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.gguf_cases import export, random_plan
from support.gguf_sources import rewritten

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.exporters.base import ExportOptions
from tenp_edge.exporters.gguf import EXPORTER
from tenp_edge.runtime.gguf.header import Header, read_header
from tenp_edge.runtime.llamacpp.model import LlamaCppModel
from tenp_edge.runtime.opening import RunOptions, open_model

Make = Callable[..., Path]
ADDED: dict[str, object] = {
    "general.name": "A model of others",
    "general.license": "mit",
    "general.quantized_by": "somebody",
    "quantize.imatrix.file": "their.dat",
    "tokenizer.chat_template": "{{ messages }}",
    "tokenizer.ggml.add_something": True,
}


@pytest.fixture
def source(gguf_of: Make, tmp_path: Path) -> Path:
    file = Path(shutil.copy(gguf_of("qwen3_moe"), tmp_path / "source.gguf"))
    return rewritten(file, add=ADDED)


def raw_of(file: Path, header: Header, key: str) -> bytes:
    start, end = header.spans[key]
    return file.read_bytes()[start:end]


@pytest.mark.parametrize("layout", ["merged", "per-expert"])
def test_metadata_is_the_sources_with_ours(layout: str, source: Path, tmp_path: Path) -> None:
    checkpoint, file = Checkpoint(source), tmp_path / "made.gguf"
    plan = random_plan(checkpoint, "uniform" if layout == "merged" else "ragged")
    pruned = ModelSource(checkpoint, plan)
    manifest = export(pruned, file, "Q4_K_M", layout)
    assert manifest.file_bytes == file.stat().st_size
    theirs, ours = read_header(source), read_header(file)
    for key in (*ADDED, *(key for key in theirs.fields if key.startswith("tokenizer."))):
        if key != "quantize.imatrix.file":
            assert raw_of(file, ours, key) == raw_of(source, theirs, key), key
    assert "quantize.imatrix.file" not in ours.fields
    assert ours.fields["general.file_type"] == 15
    assert ours.fields["tenp.layout"] == layout
    prefix = "" if layout == "merged" else "tenp-"
    assert ours.fields["general.architecture"] == f"{prefix}qwen3moe"
    width = ours.fields[f"{prefix}qwen3moe.expert_feed_forward_length"]
    assert width == (48 if layout == "merged" else 96)
    with open_model(file, RunOptions(context=64, threads=1)) as model:
        assert model.vocabulary.chat_template == "{{ messages }}"
    if layout == "merged":
        with LlamaCppModel(file, context=64, threads=1) as stock:
            assert stock.logits([1, 2, 3]).shape[0]


def test_no_word_of_how_the_source_was_split(source: Path, tmp_path: Path) -> None:
    rewritten(source, add={"split.no": 0, "split.count": 1, "general.alignment": 32})
    export(ModelSource(Checkpoint(source)), tmp_path / "made.gguf", "Q8_0", "merged")
    made = read_header(tmp_path / "made.gguf").fields
    assert not any(key.startswith(("split.", "general.alignment")) for key in made)


def test_onnx_needs_the_tokenizers_files(source: Path, refuse: Callable[..., str]) -> None:
    command = ("export", source, "--format", "onnx", "-o", source.with_name("onnx"))
    assert refuse(*command) == (
        "error: source.gguf has no tokenizer files, which an ONNX directory needs\n"
        "try:   --format gguf, or the checkpoint that the file was made from"
    )


def test_importance_needs_what_it_needs(source: Path, refuse: Callable[..., str]) -> None:
    """A type that cannot be made without a matrix, of a GGUF as of a checkpoint."""
    command = ("export", source, "--quant", "IQ2_XS", "-o", source.with_name("made.gguf"))
    assert refuse(*command) == (
        "error: IQ2_XS needs an importance matrix\n"
        f"try:   --calibration WORK (tenp-edge calibrate {source} -o WORK) "
        "without --no-imatrix, or --quant Q2_K"
    )
    with pytest.raises(Exception, match="importance matrix"):
        EXPORTER.check(Checkpoint(source).config, ExportOptions("IQ2_XS"))
