"""Every broken checkpoint or plan is refused with its own words, and nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from plans import ragged_plan
from random_checkpoint import write_random_checkpoint
from safetensors.torch import load_file, save_file

from tenp_edge.checkpoint import Checkpoint
from tenp_edge.compress import write_checkpoint
from tenp_edge.disk import require_free
from tenp_edge.errors import UserError
from tenp_edge.inspection import inspect_model
from tenp_edge.models import FAMILIES, read_config
from tenp_edge.plan import load_plan
from tenp_edge.source import ModelSource
from tenp_edge.units import format_size

CheckpointOf = Callable[[str], Path]
SUPPORTED = "deepseek_v2, deepseek_v3, mixtral, olmoe, qwen2_moe, qwen3_moe"


def refusal(action: Callable[[], object]) -> tuple[str, str | None]:
    """Message and hint of the UserError that ``action`` raises."""
    with pytest.raises(UserError) as caught:
        action()
    return caught.value.message, caught.value.hint


@pytest.fixture
def model(checkpoint_of: CheckpointOf, tmp_path: Path) -> Path:
    """A copy of the tiny qwen3_moe that a test may damage."""
    return Path(shutil.copytree(checkpoint_of("qwen3_moe"), tmp_path / "model"))


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    return write_random_checkpoint(
        tmp_path / "model", tiny.CONFIGS["qwen3_moe"], shard_bytes=400_000
    )


def edit(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))


def edit_tensors(model: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")


# -- files -----------------------------------------------------------------------------------------


def test_no_such_directory(tmp_path: Path) -> None:
    assert refusal(lambda: inspect_model(tmp_path / "none")) == (
        f"{tmp_path / 'none'} is not a model directory",
        "the path of a downloaded checkpoint",
    )


def test_a_gguf_is_no_model_to_compress(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert refusal(lambda: Checkpoint(tmp_path / "model.gguf")) == (
        f"{tmp_path / 'model.gguf'} is a GGUF file; tenp-edge prunes Hugging Face checkpoints",
        "the checkpoint it was made from (a directory with config.json and .safetensors)",
    )


def test_directory_without_config(tmp_path: Path) -> None:
    assert refusal(lambda: inspect_model(tmp_path)) == (
        f"{tmp_path} has no config.json",
        "the directory of a downloaded model",
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


# -- config ----------------------------------------------------------------------------------------

CONFIG_ERRORS: list[tuple[str, dict[str, Any], str, str | None]] = [
    (
        "qwen3_moe",
        {"model_type": "llama", "num_experts": None},
        "'llama' is a dense model: it has no routed experts to prune",
        f"a Mixture-of-Experts checkpoint of one of: {SUPPORTED}",
    ),
    (
        "qwen3_moe",
        {"model_type": "granitemoe"},
        "model family 'granitemoe' is not supported",
        f"supported: {SUPPORTED}",
    ),
    (
        "qwen3_moe",
        {"quantization_config": {"quant_method": "fp8"}},
        "the checkpoint is quantised (fp8); pruning needs the original weights",
        "the bf16, f16 or f32 checkpoint of the same model (dequantise FP8 to bf16 first)",
    ),
    (
        "qwen3_moe",
        {"quantization_config": "awq"},
        "the checkpoint is quantised (awq); pruning needs the original weights",
        "the bf16, f16 or f32 checkpoint of the same model (dequantise FP8 to bf16 first)",
    ),
    (
        "qwen3_moe",
        {"num_experts_per_tok": 9},
        "config.json contradicts itself: num_experts_per_tok is 9, the model has 8 experts",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"num_local_experts": 16},
        "config.json contradicts itself: num_experts is 8, num_local_experts is 16",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"dtype": "bfloat16"},
        "config.json contradicts itself: dtype is bfloat16, torch_dtype is float32",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen2_moe",
        {"hidden_size": 66},
        "config.json contradicts itself: hidden_size 66 does not divide by 4 heads",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"num_key_value_heads": 3},
        "config.json contradicts itself: 4 attention heads do not divide by 3 key/value heads",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "deepseek_v3",
        {"qk_head_dim": 7},
        "config.json contradicts itself: qk_head_dim is 7, its parts are 16 and 16",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "deepseek_v3",
        {"n_group": 3},
        "config.json contradicts itself: 8 experts do not divide into 3 groups",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "deepseek_v3",
        {"topk_group": 3},
        "config.json contradicts itself: topk_group is 3, there are 2 groups",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "deepseek_v3",
        {"num_experts_per_tok": 5},
        "config.json contradicts itself: 1 of 2 groups hold 4 experts, num_experts_per_tok is 5",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"mlp_only_layers": [0, 1, 2]},
        "config.json leaves no layer with routed experts",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"hidden_size": "64"},
        "config.json: hidden_size is '64', not a number above zero",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"vocab_size": 0},
        "config.json: vocab_size is 0, not a number above zero",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"rms_norm_eps": "tiny"},
        "config.json: rms_norm_eps is 'tiny', not a number",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"rope_scaling": [1]},
        "config.json: rope_scaling is [1], not an object",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"hidden_act": "gelu"},
        "config.json: hidden_act = 'gelu' is not supported",
        "supported: silu",
    ),
    (
        "qwen3_moe",
        {"rope_scaling": {"rope_type": "longrope"}},
        "config.json: rope type 'longrope' is not supported",
        "supported: default, linear, yarn",
    ),
    (
        "qwen3_moe",
        {"dual_chunk_attention": {"size": 1}},
        "config.json has keys that qwen3_moe does not know: dual_chunk_attention",
        "remove them if they do not change the model's arithmetic",
    ),
    (
        "qwen3_moe",
        {"torch_dtype": "float8_e4m3fn"},
        "config.json: dtype = 'float8_e4m3fn' is not supported",
        "supported: bfloat16, float16, float32",
    ),
    (
        "qwen3_moe",
        {"tenp": {"expert_widths": {"0": [32] * 8}}},
        "config.json: the tenp section does not match the model's MoE layers",
        "the config.json that belongs to the checkpoint",
    ),
    (
        "qwen3_moe",
        {"tenp": {"expert_widths": {"x": 3}}},
        "config.json: the tenp section is malformed",
        "the config.json that belongs to the checkpoint",
    ),
]


@pytest.mark.parametrize(
    ("family", "changes", "message", "hint"), CONFIG_ERRORS, ids=lambda value: str(value)[:40]
)
def test_config(
    family: str,
    changes: dict[str, Any],
    message: str,
    hint: str | None,
    checkpoint_of: CheckpointOf,
    tmp_path: Path,
) -> None:
    shutil.copytree(checkpoint_of(family), tmp_path / "model")
    kept = {key: value for key, value in changes.items() if value is not None}
    gone = [key for key, value in changes.items() if value is None]

    def change(raw: dict[str, Any]) -> None:
        raw.update(kept)
        for key in gone:
            del raw[key]

    edit(tmp_path / "model" / "config.json", change)
    assert refusal(lambda: inspect_model(tmp_path / "model")) == (message, hint)


# -- plans -----------------------------------------------------------------------------------------


def test_plan_of_another_model(checkpoint_of: CheckpointOf) -> None:
    plan = ragged_plan(Checkpoint(checkpoint_of("qwen3_moe")))
    other = Checkpoint(checkpoint_of("olmoe"))
    assert refusal(lambda: ModelSource(other, plan)) == (
        f"the plan belongs to another checkpoint ({plan.fingerprint[:12]}, "
        f"this one is {other.fingerprint[:12]})",
        "plan again for this model",
    )


def test_plan_whose_neurons_were_changed(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    file = tmp_path / "plan.json"
    ragged_plan(checkpoint).save(file)
    assert load_plan(file).digest == ragged_plan(checkpoint).digest
    tensors = load_file(tmp_path / "plan.safetensors")
    tensors["layers.1.experts.0"][0] = 95 - len(tensors["layers.1.experts.0"])
    tensors["layers.1.experts.0"] = tensors["layers.1.experts.0"].sort().values
    unique = len(set(tensors["layers.1.experts.0"].tolist()))
    save_file(tensors, tmp_path / "plan.safetensors")
    expected = (
        f"{file} does not match its plan.safetensors"
        if unique == len(tensors["layers.1.experts.0"])
        else f"{tmp_path / 'plan.safetensors'}: layers.1.experts.0 is not a legal slice"
    )
    assert refusal(lambda: load_plan(file))[0] == expected


@pytest.mark.parametrize("wrong", [[5, 4], [3, 3], [-1, 2], [2, 96]])
def test_plan_with_an_illegal_slice(
    wrong: list[int], checkpoint_of: CheckpointOf, tmp_path: Path
) -> None:
    ragged_plan(Checkpoint(checkpoint_of("qwen3_moe"))).save(tmp_path / "plan.json")
    tensors = load_file(tmp_path / "plan.safetensors")
    width = len(tensors["layers.0.experts.0"])
    kept = torch.arange(width, dtype=torch.int32)
    kept[-2:] = torch.tensor(wrong)
    tensors["layers.0.experts.0"] = kept
    save_file(tensors, tmp_path / "plan.safetensors")
    assert refusal(lambda: load_plan(tmp_path / "plan.json")) == (
        f"{tmp_path / 'plan.safetensors'}: layers.0.experts.0 is not a legal slice",
        "plan again",
    )


def test_plan_without_its_neurons(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    ragged_plan(Checkpoint(checkpoint_of("qwen3_moe"))).save(tmp_path / "plan.json")
    (tmp_path / "plan.safetensors").unlink()
    assert refusal(lambda: load_plan(tmp_path / "plan.json")) == (
        f"{tmp_path / 'plan.safetensors'} is missing beside plan.json",
        "plan again",
    )


def test_something_else_than_a_plan(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}")
    assert refusal(lambda: load_plan(tmp_path / "plan.json")) == (
        f"{tmp_path / 'plan.json'} is not a tenp-edge plan of version 1",
        "plan again",
    )


# -- a full disk -----------------------------------------------------------------------------------


def test_disk_is_checked_before_the_work(tmp_path: Path) -> None:
    message, hint = refusal(lambda: require_free(tmp_path / "new", 2**60, "the pruned checkpoint"))
    numbers = re.escape(f"{tmp_path / 'new'} has ") + r"[0-9.]+ [GMK]iB free"
    assert re.fullmatch(
        rf"the pruned checkpoint needs 1073741824\.00 GiB of disk, {numbers}", message
    )
    assert hint == "free some space or choose -o on another disk; the same command continues"
    assert not (tmp_path / "new").exists()


_LIMITED = """
import resource, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
from pathlib import Path
from plans import ragged_plan
from tenp_edge.checkpoint import Checkpoint
from tenp_edge.compress import write_checkpoint
from tenp_edge.errors import UserError
from tenp_edge.source import ModelSource
checkpoint = Checkpoint({model!r})
source = ModelSource(checkpoint, ragged_plan(checkpoint))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500 * 1024, 500 * 1024))
try:
    write_checkpoint(source, Path({out!r}))
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no file-size limits")
def test_file_size_limit(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    model, out, here = checkpoint_of("qwen3_moe"), tmp_path / "out", Path(__file__).parent
    code = _LIMITED.format(tests=str(here), root=str(here.parent), model=str(model), out=str(out))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    checkpoint = Checkpoint(model)
    source = ModelSource(checkpoint, ragged_plan(checkpoint))
    write_checkpoint(source, tmp_path / "whole")
    size = format_size((tmp_path / "whole" / "model.safetensors").stat().st_size)
    assert found.stdout == (
        f"model.safetensors needs {size}, the limit for one file is 500.00 KiB (ulimit -f)\n"
        "try: raise the limit; the same command continues\n"
    )
    assert [file.name for file in out.iterdir()] == ["tenp-unfinished.json"]
    write_checkpoint(source, out)
    assert sorted(f.name for f in out.iterdir()) == sorted(
        f.name for f in (tmp_path / "whole").iterdir()
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A tmpfs of 640 KiB, where mounting is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=640k", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_disk_that_fills_up(
    checkpoint_of: CheckpointOf, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The space that was free at the check is gone when it is needed."""
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    source = ModelSource(checkpoint, ragged_plan(checkpoint))
    message, hint = refusal(lambda: write_checkpoint(source, small_disk))
    assert message.startswith("the pruned checkpoint needs ") and " of disk, " in message
    monkeypatch.setattr("tenp_edge.compress.require_free", lambda *_: None)
    message, _ = refusal(lambda: write_checkpoint(source, small_disk))
    assert message.startswith("the disk is full: model.safetensors needs ")
    assert message.endswith(" KiB free")
    assert hint == "free some space or choose -o on another disk; the same command continues"
    assert [file.name for file in small_disk.iterdir()] == ["tenp-unfinished.json"]


def test_a_derived_key_that_agrees_is_read() -> None:
    """transformers 5 saves qk_head_dim, the sum of two others, with every DeepSeek model."""
    raw = dict(tiny.CONFIGS["deepseek_v3"])
    both = raw["qk_nope_head_dim"] + raw["qk_rope_head_dim"]
    assert read_config({**raw, "qk_head_dim": both}, FAMILIES).head_dim == both
