"""Model directories, plans and statistics that anyone may have made: one error, in time."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.edits import edit, refusal
from support.plans import ragged_plan
from support.synthetic import write_statistics

from tenp_edge.calibration.storage import load_statistics
from tenp_edge.checkpoint.compression_plan import load_plan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.overlay import Mended
from tenp_edge.forward.streaming import transformers_config
from tenp_edge.models.inspection import inspect_model

CheckpointOf = Callable[[str], Path]
BELONGS = "the config.json that belongs to the checkpoint"
AGAIN = "download the file again"
DAMAGED = ("model.safetensors has a damaged header", AGAIN)
APART = "b begins at byte {%d}, what comes before it ends at {4}"


@pytest.fixture
def model(checkpoint_of: CheckpointOf, tmp_path: Path) -> Path:
    """A copy of the tiny qwen3_moe that a test may damage."""
    return Path(shutil.copytree(checkpoint_of("qwen3_moe"), tmp_path / "model"))


# -- config.json -----------------------------------------------------------------------------------

CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000; no model has more than 10000"),
    ({"num_experts": 10**6}, "num_experts is 1000000; no model has more than 100000"),
    ({"hidden_size": 2**40}, "hidden_size is 1099511627776; no model has more than 2147483647"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, not a number of zero or more"),
    ({"rms_norm_eps": -1e-6}, "rms_norm_eps is -1e-06, not a number of zero or more"),
    ({"rope_theta": float("inf")}, "rope_theta is inf, not a number above zero"),
    ({"rope_theta": -1.0}, "rope_theta is -1.0, not a number above zero"),
    ({"rope_theta": 0}, "rope_theta is 0, not a number above zero"),
    ({"rope_theta": "10000"}, "rope_theta is '10000', not a number"),
    ({"rope_theta": [1e4]}, "rope_theta is [10000.0], not a number"),
    (
        {"routed_scaling_factor": float("-inf")},
        "routed_scaling_factor is -inf, not a number above zero",
    ),
    ({"mlp_only_layers": 3}, "mlp_only_layers is 3, not a list of layers"),
    ({"mlp_only_layers": [[0]]}, "mlp_only_layers is [[0]], not a list of layers"),
    ({"mlp_only_layers": "01"}, "mlp_only_layers is '01', not a list of layers"),
    ({"head_dim": "32"}, "head_dim is '32', not a number above zero"),
    ({"head_dim": [32]}, "head_dim is [32], not a number above zero"),
    ({"head_dim": 32.0}, "head_dim is 32.0, not a number above zero"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false', not true or false"),
    (
        {"rope_scaling": {"type": "linear", "factor": "2"}},
        "rope_scaling.factor is '2', not a number",
    ),
    (
        {"rope_scaling": {"type": "linear", "factor": 0.5}},
        "rope_scaling.factor is 0.5, not 1 or more",
    ),
    (
        {
            "rope_scaling": {
                "type": "yarn",
                "factor": 2.0,
                "original_max_position_embeddings": 1.5,
            }
        },
        "rope_scaling.original_max_position_embeddings is 1.5, not a length",
    ),
    ({"hidden_size": "a" * 5000}, f"hidden_size is '{'a' * 59}..., not a number above zero"),
]


@pytest.mark.parametrize(("changes", "why"), CONFIGS, ids=lambda value: str(value)[:40])
def test_values_are_refused_in_their_own_name(
    model: Path, changes: dict[str, Any], why: str
) -> None:
    edit(model / "config.json", lambda raw: raw.update(changes))
    assert refusal(lambda: inspect_model(model)) == (f"config.json: {why}", BELONGS)


def test_yarn_without_a_factor(model: Path) -> None:
    edit(model / "config.json", lambda raw: raw.update(rope_scaling={"type": "yarn"}))
    assert refusal(lambda: inspect_model(model)) == (
        "config.json contradicts itself: rope_scaling of the type yarn has no factor",
        BELONGS,
    )


@pytest.mark.parametrize("width", [float("inf"), 1e25])
def test_widths_that_are_no_widths(model: Path, width: float) -> None:
    section = {"expert_widths": {str(layer): [width] * 8 for layer in range(3)}}
    edit(model / "config.json", lambda raw: raw.update(tenp=section))
    message, hint = refusal(lambda: inspect_model(model))
    assert message.startswith("config.json: the tenp section ") and hint == BELONGS


def test_a_config_is_bounded_by_what_is_stored(model: Path) -> None:
    edit(model / "config.json", lambda raw: raw.update(num_hidden_layers=9999, num_experts=99999))
    begun = time.process_time()
    assert refusal(lambda: inspect_model(model)) == (
        "config.json implies 2999690001 tensors or more, the checkpoint has 101",
        BELONGS,
    )
    assert time.process_time() - begun < 2


def test_what_transformers_does_not_read(model: Path) -> None:
    edit(model / "config.json", lambda raw: raw.update(initializer_range="wide"))
    message, hint = refusal(lambda: transformers_config(Checkpoint(model).config))
    assert message.startswith("transformers cannot read config.json: ") and "\n" not in message
    assert hint == BELONGS


def test_pipes_and_devices_are_not_read(model: Path) -> None:
    for file in (model / "config.json", model / "model.safetensors"):
        kept = file.read_bytes()
        file.unlink()
        os.mkfifo(file)
        expected = (f"{file} is not a file", "a file, not a pipe, device or directory")
        assert refusal(lambda: inspect_model(model)) == expected
        file.unlink()
        file.symlink_to("/dev/zero")
        assert refusal(lambda: inspect_model(model)) == expected
        file.unlink()
        file.write_bytes(kept)
    assert inspect_model(model).layers == 3


def test_json_that_is_nested_too_deep(model: Path) -> None:
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    file = model / "config.json"
    kept = file.read_bytes()
    file.write_bytes(deep)
    assert refusal(lambda: inspect_model(model)) == (
        f"{file} is not valid JSON: it is nested too deep",
        AGAIN,
    )
    file.write_bytes(kept)
    (model / "model.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep)
    assert refusal(lambda: inspect_model(model)) == (
        "model.safetensors has a damaged header",
        AGAIN,
    )


# -- safetensors -----------------------------------------------------------------------------------


def write_header(file: Path, header: str, data: int) -> None:
    raw = header.encode()
    file.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(data))


def entry(begin: Any, end: Any, shape: Any = (1,)) -> str:
    return json.dumps({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]})


@pytest.mark.parametrize(
    ("header", "data", "why"),
    [
        (f'{{"a": {entry(0, 4)}, "b": {entry(2, 6)}}}', 6, APART % 2),
        (f'{{"a": {entry(0, 4)}, "b": {entry(8, 12)}}}', 12, APART % 8),
        (f'{{"a": {entry(0, 4)}}}', 8, "its tensors end at byte {4}, the file has {8}"),
    ],
)
def test_tensors_fill_the_file(model: Path, header: str, data: int, why: str) -> None:
    write_header(model / "model.safetensors", header, data)
    start = 8 + len(header)
    for number in (2, 4, 8):
        why = why.replace(f"{{{number}}}", str(start + number))
    expected = (f"model.safetensors has a damaged header: {why}", AGAIN)
    assert refusal(lambda: inspect_model(model)) == expected


@pytest.mark.parametrize(
    "header",
    [
        f'{{"a": {entry(0, 4)}, "a": {entry(0, 4)}}}',
        f'{{"a": {entry(0.0, 4)}}}',
        f'{{"a": {entry(0, 4, [1.0])}}}',
        f'{{"a": {entry(False, 4)}}}',
    ],
)
def test_headers_that_the_safetensors_library_refuses(model: Path, header: str) -> None:
    write_header(model / "model.safetensors", header, 4)
    assert refusal(lambda: inspect_model(model)) == (
        "model.safetensors has a damaged header",
        AGAIN,
    )


def test_a_shard_of_an_impossible_name(model: Path) -> None:
    index = {"weight_map": {"a": "x" * 5000}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(lambda: inspect_model(model)) == (
        f"1 of 1 shards are missing, the first is {'x' * 80}...",
        "download the missing files",
    )


# -- plans, statistics, mended weights -------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda raw: raw["widths"]["0"].__setitem__(0, float("inf")), "field 'widths'"),
        (lambda raw: raw.update(widths={}), "field 'widths'"),
        (lambda raw: raw["widths"]["0"].__setitem__(0, 97), "a width is outside 0..96"),
        (lambda raw: raw["model"].update(fingerprint=7), "field 'fingerprint'"),
        (lambda raw: raw.update(record=[]), "field 'record'"),
        (lambda raw: raw.pop("files"), "field 'files'"),
        (lambda raw: raw.update(moe_intermediate_size="96"), "field 'moe_intermediate_size'"),
    ],
)
def test_plans_that_were_changed(
    model: Path, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    file = model / "plan.json"
    ragged_plan(Checkpoint(model)).save(file)
    edit(file, change)
    why += " is missing or malformed" if why.startswith("field") else ""
    assert refusal(lambda: load_plan(file)) == (f"{file}: {why}", "plan again")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"layers": [0, "1"]}, "'layers' is missing or malformed"),
        ({"layers": [1, 0]}, "'layers' is missing or malformed"),
        ({"layers": [0, 1]}, "'layers' is not the model's"),
        ({"experts": 1.5}, "'experts' is missing or malformed"),
        ({"width": 97}, "'width' is not the model's"),
        ({"domains": {}}, "'domains' is missing or malformed"),
        ({"domains": {"code": {"samples": 1}}}, "'domains' is missing or malformed"),
        ({"fingerprint": 7}, "'fingerprint' is missing or malformed"),
        ({"seq_len": None}, "'seq_len' is missing or malformed"),
    ],
)
def test_statistics_that_were_changed(
    model: Path, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    checkpoint, work = Checkpoint(model), tmp_path / "work"
    write_statistics(work, checkpoint.config, checkpoint.fingerprint)
    edit(work / "statistics.json", lambda raw: raw.update(changes))
    assert refusal(lambda: load_statistics(work, checkpoint.fingerprint, checkpoint.config)) == (
        f"{work / 'statistics.json'} is damaged: {why}",
        "calibrate again",
    )


def test_statistics_without_a_sum(model: Path, tmp_path: Path) -> None:
    checkpoint, work = Checkpoint(model), tmp_path / "work"
    write_statistics(work, checkpoint.config, checkpoint.fingerprint)
    edit(
        work / "statistics.json",
        lambda raw: raw["domains"].update(more={"samples": 1, "tokens": 1}),
    )
    assert refusal(lambda: load_statistics(work)) == (
        f"{work / 'statistics.safetensors'} is damaged: more/layers.0.tokens of the shape [8] "
        "is not there",
        "calibrate again",
    )


def test_mended_weights_that_were_changed(tmp_path: Path) -> None:
    facts = {"format": "tenp-edge mended weights", "version": 1, "layers": ["../x"]}
    (tmp_path / "mended.json").write_text(json.dumps(facts))
    assert refusal(lambda: Mended(tmp_path)) == (
        f"{tmp_path / 'mended.json'} is damaged",
        "compress again",
    )
