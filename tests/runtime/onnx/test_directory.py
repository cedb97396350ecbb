"""ONNX directories that anyone may have made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from support.edits import edit, refusal

from tenp_edge.runtime.directory_vocabulary import open_vocabulary
from tenp_edge.runtime.onnx.directory import read_directory
from tenp_edge.runtime.opening import open_model

CheckpointOf = Callable[[str], Path]
EXPORT = "export it again"


@pytest.fixture
def directory(checkpoint_of: CheckpointOf, tmp_path: Path) -> Path:
    """Tokenizer and settings of an ONNX directory; its graph has one external tensor."""
    path = Path(shutil.copytree(checkpoint_of("qwen3_moe"), tmp_path / "onnx"))
    (path / "model.safetensors").unlink()
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[1], data_location=1)
    for key, value in (("location", "model.data"), ("offset", "abc"), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    onnx.save(onnx.helper.make_model(graph), path / "model.onnx")
    (path / "model.data").write_bytes(bytes(4))
    return path


def test_external_data_at_an_offset_that_is_none(directory: Path) -> None:
    message, hint = refusal(lambda: open_model(directory))
    assert message.startswith(f"onnxruntime cannot load {directory / 'model.onnx'}: ")
    assert hint == "copy the whole directory again, or export it again"


@pytest.mark.parametrize("past", ["7", 0, 1.5, []])
def test_lengths_that_are_none(directory: Path, past: object) -> None:
    (directory / "tenp.json").write_text(json.dumps({"lengths": {"past": past}}))
    assert refusal(lambda: read_directory(directory).context) == (
        f"{directory / 'tenp.json'}: lengths.past is {past!r}, not a number above zero",
        "copy the whole directory again, or export it again",
    )


def test_settings_that_are_nested_too_deep(directory: Path) -> None:
    (directory / "tenp.json").write_text('{"a":' * 100_000)
    assert refusal(lambda: read_directory(directory)) == (
        f"{directory / 'tenp.json'} is not JSON: it is nested too deep",
        EXPORT,
    )


def test_a_tokenizer_that_panics(directory: Path) -> None:
    """A regular expression that takes more retries than its library allows is a panic in Rust,
    which is no Exception in Python."""
    split: dict[str, Any] = {"type": "Split", "behavior": "Isolated", "invert": False}
    split["pattern"] = {"Regex": "(x+x+)+y"}
    edit(directory / "tokenizer.json", lambda raw: raw.update(pre_tokenizer=split))
    vocabulary = open_vocabulary(directory)
    assert refusal(lambda: vocabulary.tokenize("x" * 40)) == (
        f"{directory / 'tokenizer.json'} cannot be used: Onig: Regex search error: "
        "retry-limit-in-match over",
        "export it again, or copy the model's tokenizer files there",
    )


def test_chat_templates_that_are_no_templates(directory: Path) -> None:
    settings = directory / "tokenizer_config.json"
    edit(settings, lambda raw: raw.update(chat_template=[7, {"name": "default", "template": "x"}]))
    assert open_vocabulary(directory).chat_template == "x"
    (directory / "chat_template.jinja").write_bytes(b"\xff")
    assert refusal(lambda: open_vocabulary(directory).chat_template) == (
        f"{directory / 'chat_template.jinja'} is not UTF-8",
        "export it again, or copy the model's tokenizer files there",
    )
