"""Every broken checkpoint is refused with its own words."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from random_checkpoint import write_random_checkpoint
from safetensors.torch import load_file
from support import tiny
from support.edits import edit, edit_tensors, refusal
from support.plans import ragged_plan

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.models.inspection import inspect_model

CheckpointOf = Callable[[str], Path]


@pytest.fixture
def model(checkpoint_of: CheckpointOf, tmp_path: Path) -> Path:
    """A copy of the tiny qwen3_moe that a test may damage."""
    return Path(shutil.copytree(checkpoint_of("qwen3_moe"), tmp_path / "model"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_random_checkpoint(
        tmp_path / "model", tiny.CONFIGS["qwen3_moe"], shard_bytes=400_000
    )


# -- files -----------------------------------------------------------------------------------------


def test_no_such_directory(tmp_path: Path) -> None:
    assert refusal(lambda: inspect_model(tmp_path / "none")) == (
        f"{tmp_path / 'none'} is not a model directory or a GGUF file",
        "the path of a downloaded checkpoint",
    )


def test_a_broken_gguf(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert refusal(lambda: Checkpoint(tmp_path / "model.gguf")) == (
        "model.gguf is not a usable GGUF file: it has 4 bytes, a header needs 24",
        "a sound copy of it",
    )


def test_directory_without_config(tmp_path: Path) -> None:
    assert refusal(lambda: inspect_model(tmp_path)) == (
        f"{tmp_path} has no config.json",
        "the directory of a downloaded model",
    )


def test_a_shard_in_capitals_is_to_be_renamed(sharded: Path) -> None:
    named = sharded / "model-00002-of-00006.safetensors"
    found = named.rename(sharded / "Model-00002-of-00006.safetensors")
    assert refusal(lambda: inspect_model(sharded)) == (
        f"model.safetensors.index.json names {named.name}, and the file is called {found.name}",
        f"mv {found} {named}",
    )


def test_missing_shard(sharded: Path) -> None:
    (sharded / "model-00002-of-00006.safetensors").unlink()
    assert refusal(lambda: inspect_model(sharded)) == (
        "1 of 6 shards are missing, the first is model-00002-of-00006.safetensors",
        "download the missing files",
    )


def test_truncated_shard(sharded: Path) -> None:
    file = sharded / "model-00003-of-00006.safetensors"
    os.truncate(file, file.stat().st_size - 100)
    size = file.stat().st_size
    message, hint = refusal(lambda: inspect_model(sharded))
    assert message.startswith(f"{file.name} is cut short: model.layers.")
    assert message.endswith(f"ends at byte {size + 100}, the file has {size}")
    assert hint == "download the file again"


@pytest.mark.parametrize("size", [0, 5, 200])
def test_shard_cut_inside_its_header(sharded: Path, size: int) -> None:
    os.truncate(sharded / "model-00001-of-00006.safetensors", size)
    assert refusal(lambda: inspect_model(sharded)) == (
        "model-00001-of-00006.safetensors is not a safetensors file or is cut short "
        f"({size} bytes)",
        "download the file again",
    )


def test_index_names_absent_tensors(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    edit(index, lambda raw: raw["weight_map"].update(ghost="model-00001-of-00006.safetensors"))
    assert refusal(lambda: inspect_model(sharded)) == (
        "the index names 1 tensors that its shards do not hold, "
        "the first is ghost in model-00001-of-00006.safetensors",
        "download the index and the shards again, from one revision",
    )


def test_index_outside_the_directory(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    edit(index, lambda raw: raw["weight_map"].update(ghost="../other.safetensors"))
    assert refusal(lambda: inspect_model(sharded)) == (
        "model.safetensors.index.json names a file outside the model directory: "
        "../other.safetensors",
        "download the index again",
    )


@pytest.mark.parametrize("content", ['{"weight_map": []}', '{"weight_map": {"a": 1}}', "{}"])
def test_malformed_index(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    assert refusal(lambda: inspect_model(sharded)) == (
        "model.safetensors.index.json has no weight_map of tensor names to files",
        "download the index again",
    )


def test_shards_without_index(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    assert refusal(lambda: inspect_model(sharded)) == (
        f"{sharded} has 6 .safetensors files but no model.safetensors.index.json",
        "download the index too",
    )


def test_what_lies_beside_the_weights(model: Path) -> None:
    """Publishers' own files; transformers does not read them either."""
    before = inspect_model(model)
    (model / "original").mkdir()
    (model / ".git").mkdir()
    for name in ("consolidated.safetensors", "original/model.safetensors", "pytorch_model.bin"):
        (model / name).write_bytes(b"not read")
    assert inspect_model(model) == before


def test_pickle_only(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert refusal(lambda: inspect_model(model)) == (
        "pytorch_model.bin is a pickle, which can run code when it is opened; "
        "only safetensors is read",
        "convert it with transformers: model.save_pretrained(DIR, safe_serialization=True)",
    )


def test_no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert refusal(lambda: inspect_model(model)) == (
        f"{model} has no .safetensors file",
        "download the weights too",
    )


@pytest.mark.parametrize(
    "header",
    [
        b"{not json",
        b"[]",
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1]}}',
        b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": 7, "shape": [1], "data_offsets": [0, 4]}}',
        b"\xff\xfe",
    ],
)
def test_damaged_header(model: Path, header: bytes) -> None:
    data = len(header).to_bytes(8, "little") + header + bytes(64)
    (model / "model.safetensors").write_bytes(data)
    assert refusal(lambda: inspect_model(model)) == (
        "model.safetensors has a damaged header",
        "download the file again",
    )


def test_config_is_not_json(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": ')
    assert refusal(lambda: inspect_model(model)) == (
        f"{model / 'config.json'} is not valid JSON: Expecting value: line 1 column 16 (char 15)",
        "download the file again",
    )
    (model / "config.json").write_text("[1]")
    assert refusal(lambda: inspect_model(model)) == (
        f"{model / 'config.json'} is not a JSON object",
        "download the file again",
    )
    (model / "config.json").write_bytes(b'{"a": "\xff"}')
    message, _ = refusal(lambda: inspect_model(model))
    assert message.startswith(f"{model / 'config.json'} is not valid JSON: ")


# -- tensors ---------------------------------------------------------------------------------------


def test_missing_tensor(model: Path) -> None:
    edit_tensors(model, lambda tensors: tensors.pop("model.norm.weight"))
    expected = len(load_file(model / "model.safetensors")) + 1
    assert refusal(lambda: inspect_model(model)) == (
        f"config.json implies {expected} tensors, 1 of them are not in the checkpoint; "
        "the first is model.norm.weight",
        "check that every shard is there and that config.json belongs to them",
    )


def test_wrong_shape(model: Path) -> None:
    edit_tensors(model, lambda tensors: tensors.update({"model.norm.weight": torch.ones(65)}))
    assert refusal(lambda: inspect_model(model)) == (
        "model.norm.weight has shape [65], config.json implies [64]",
        "check that config.json belongs to this checkpoint",
    )


@pytest.mark.parametrize(
    ("dtype", "name"),
    [(torch.float64, "F64"), (torch.int32, "I32"), (torch.float8_e4m3fn, "F8_E4M3")],
)
def test_wrong_dtype(model: Path, dtype: torch.dtype, name: str) -> None:
    tensor = "model.layers.0.mlp.experts.3.up_proj.weight"
    edit_tensors(model, lambda tensors: tensors.update({tensor: tensors[tensor].to(dtype)}))
    assert refusal(lambda: inspect_model(model)) == (
        f"{tensor} is stored as {name}; weights must be BF16, F16 or F32",
        "the bf16, f16 or f32 checkpoint of the same model",
    )


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("model.layers.1.mlp.experts.2.down_proj.weight", float("nan")),
        ("model.layers.2.self_attn.k_proj.weight", float("inf")),
        ("model.embed_tokens.weight", float("-inf")),
        ("model.layers.0.mlp.gate.weight", float("nan")),
    ],
)
def test_weights_that_are_not_numbers(model: Path, tensor: str, value: float) -> None:
    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors[tensor][1, :2] = value

    edit_tensors(model, spoil)
    checkpoint = Checkpoint(model)
    source = ModelSource(checkpoint, ragged_plan(checkpoint))
    out = model.parent / "out"
    assert refusal(lambda: write_checkpoint(source, out)) == (
        f"{tensor} holds 2 values that are not finite (NaN or infinity)",
        "a sound copy of the checkpoint",
    )
    assert [file.name for file in out.iterdir()] == ["tenp-unfinished.json"]
