"""What run, serve, bench and validate find in a directory, and what they say where nothing runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tenp_edge.errors import UserError
from tenp_edge.runtime.locating import locate, runnable

WANTED = "the path of a GGUF file, an ONNX directory, or what compress wrote"


def lay(root: Path, *names: str) -> Path:
    """Empty files under ``root``; config.json says what is told after a colon."""
    for name in names:
        file, _, told = name.partition(":")
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(told)
    return root


@pytest.mark.parametrize(
    ("names", "kind", "found"),
    [
        (["model.gguf", "checkpoint/config.json", "plan.json"], "gguf", "model.gguf"),
        (["onnx/model.onnx", "onnx/config.json", "checkpoint/config.json"], "onnx", "onnx"),
        (["onnx/prefill.onnx", "onnx/decode.onnx"], "onnx", "onnx"),
        (["model.gguf", "other.gguf", "onnx/model.onnx"], "gguf", "model.gguf"),
        (["small.gguf", "checkpoint/config.json"], "gguf", "small.gguf"),
        (["int4/model.onnx"], "onnx", "int4"),
        (["model.onnx", "config.json"], "onnx", ""),
        (["checkpoint/config.json", "plan.json"], "checkpoint", "checkpoint"),
        (["config.json", "model.safetensors"], "checkpoint", ""),
        (["config.json", "model.gguf"], "checkpoint", ""),
    ],
)
def test_what_is_found(names: list[str], kind: str, found: str, tmp_path: Path) -> None:
    assert locate(lay(tmp_path, *names)).kind == kind
    assert locate(tmp_path).path == tmp_path / found


def test_files_are_themselves(tmp_path: Path) -> None:
    lay(tmp_path, "a.gguf", "b", "d/model.onnx")
    assert locate(tmp_path / "a.gguf").path == tmp_path / "a.gguf"
    assert locate(tmp_path / "b").kind == "gguf"  # Whatever it is, the reader says.
    assert locate(tmp_path / "d" / "model.onnx").kind == "onnx"


def refused(path: Path) -> tuple[str, str | None]:
    with pytest.raises(UserError) as caught:
        runnable(path)
    return caught.value.message, caught.value.hint


def test_nothing_there(tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    assert refused(absent) == (f"{absent} does not exist", WANTED)
    assert refused(tmp_path) == (
        f"{tmp_path} holds no model: no model.gguf, no onnx/, no checkpoint/",
        WANTED,
    )
    lay(tmp_path, "manifest.json", "calibration/statistics.json")
    assert refused(tmp_path) == (
        f"{tmp_path} holds no finished model yet",
        "the tenp-edge compress command that began it: it continues where it stopped",
    )


def test_several_to_choose_from(tmp_path: Path) -> None:
    lay(tmp_path, "b.gguf", "a.gguf", "c/model.onnx")
    assert refused(tmp_path) == (
        f"{tmp_path} holds 3 models: a.gguf, b.gguf, c",
        str(tmp_path / "a.gguf"),
    )


def test_checkpoints_do_not_run(tmp_path: Path) -> None:
    out = lay(tmp_path / "my out", "checkpoint/config.json:" + json.dumps({"tenp": {}}))
    checkpoint = out / "checkpoint"
    assert refused(out) == (
        f"{out} holds a checkpoint, but no model.gguf and no onnx/ to run",
        f"tenp-edge export '{checkpoint}' -o '{out}/model.gguf'",
    )
    what = f"{checkpoint} is a Hugging Face checkpoint: tenp-edge runs GGUF files and ONNX"
    assert refused(checkpoint) == (what, f"tenp-edge export '{checkpoint}' -o model.gguf")
    lay(out, "model.gguf")
    assert refused(checkpoint) == (what, f"{out / 'model.gguf'}, which was made from it")


@pytest.mark.parametrize("told", ["{}", "not json", "[]"])
def test_a_downloaded_model_is_to_be_compressed_first(told: str, tmp_path: Path) -> None:
    model = lay(tmp_path / "Qwen", f"config.json:{told}", "model.safetensors")
    assert refused(model) == (
        f"{model} is a Hugging Face checkpoint: tenp-edge runs GGUF files and ONNX",
        f"tenp-edge compress {model} --ram 8GiB -o OUT",
    )
