"""Damage of equal size is noticed, said and mended."""

from __future__ import annotations

import json
from pathlib import Path

import crashing
import pytest
from support.edits import refusal
from support.noting import Notes, flip, names

from tenp_edge.calibration.storage import VERSION, load_statistics
from tenp_edge.checkpoint.writer import MARKER
from tenp_edge.exporters.onnx.files.whole_directory import whole_directory


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.gguf", "{out}/model.gguf changed after it was written: made again"),
        (
            "checkpoint/model.safetensors",
            "{out}/checkpoint/model.safetensors changed after it was written: made again",
        ),
        (
            "checkpoint/config.json",
            "{out}/checkpoint/config.json changed after it was written: made again",
        ),
        (
            "mended/layer-1.safetensors",
            "{out}/mended/layer-1.safetensors changed after it was written: made again",
        ),
        (
            "calibration/statistics.safetensors",
            "{out}/calibration/statistics.safetensors is damaged: its bytes are not those that "
            "were written; calibrating again",
        ),
    ],
)
def test_damage_is_said_and_mended(name: str, said: str, finished: Path, small_model: Path) -> None:
    before, notes = crashing.contents(finished), Notes()
    flip(finished / name)
    crashing.repair(small_model, finished, notes)
    assert said.format(out=finished) in notes.said
    assert "nothing to do" not in " ".join(notes.said)
    assert crashing.contents(finished) == before


@pytest.mark.parametrize("name", ["model.onnx", "tenp.json"])
def test_damage_in_an_onnx_directory(name: str, small_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    crashing.onnx(small_model, out)
    before, notes = crashing.contents(out), Notes()
    flip(out / "onnx" / name)
    crashing.onnx(small_model, out, notes)
    assert f"{out / 'onnx' / name} changed after it was written: made again" in notes.said
    assert crashing.contents(out) == before


def test_an_export_that_was_killed_in_anothers_place_is_continued(tmp_path: Path) -> None:
    target = tmp_path / "onnx"
    target.mkdir()
    (target / MARKER).write_text('{"files": {"old": null, "moved": null}}')
    for name in ("old", "moved", "not ours"):
        (target / name).touch()
    with whole_directory(target) as partial:
        for name in ("new", "tenp.json"):
            (partial / name).touch()
    assert names(target) == ["new", "not ours", "tenp.json"]


def test_damaged_statistics_are_not_planned_from(finished: Path) -> None:
    work = finished / "calibration"
    flip(work / "statistics.safetensors")
    assert refusal(lambda: load_statistics(work)) == (
        f"{work / 'statistics.safetensors'} is damaged: its bytes are not those that were written",
        f"tenp-edge calibrate MODEL -o {work}",
    )


def test_statistics_of_another_version(tmp_path: Path) -> None:
    record = {"format": "tenp-edge statistics", "version": VERSION - 1}
    (tmp_path / "statistics.json").write_text(json.dumps(record))
    assert refusal(lambda: load_statistics(tmp_path)) == (
        f"{tmp_path} holds no tenp-edge statistics of version 2",
        f"tenp-edge calibrate MODEL -o {tmp_path}",
    )


def test_damaged_gradients_are_noticed(small_model: Path, tmp_path: Path) -> None:
    crashing.calibrate(small_model, tmp_path)
    flip(tmp_path / "gradients.safetensors")
    message, _ = refusal(lambda: load_statistics(tmp_path))
    assert message.startswith(f"{tmp_path / 'gradients.safetensors'} is damaged")
