"""A second run says what is done and does the rest."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import crashing
from support.edits import refusal
from support.noting import Notes

from tenp_edge.calibration.storage import load_statistics


def test_a_rerun_says_that_there_is_nothing_to_do(finished: Path, small_model: Path) -> None:
    notes = Notes()
    crashing.repair(small_model, finished, notes)
    assert notes.said == [f"nothing to do: {finished} is complete"]


def test_a_continued_run_says_what_is_done(finished: Path, small_model: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    del manifest["complete"], manifest["stages"]["export"]
    (finished / "manifest.json").write_text(json.dumps(manifest))
    notes = Notes()
    crashing.repair(small_model, finished, notes)
    stages = ("calibration", "plan", "mending", "checkpoint")
    assert notes.said == [f"{stage}: reused" for stage in stages]


def test_a_manifest_of_an_older_version_is_run_again(finished: Path, small_model: Path) -> None:
    before = crashing.contents(finished)
    manifest = json.loads((finished / "manifest.json").read_text())
    for stage in manifest["stages"].values():
        stage["files"] = {name: entry["bytes"] for name, entry in stage["files"].items()}
    (finished / "manifest.json").write_text(json.dumps(manifest))
    crashing.repair(small_model, finished)
    assert crashing.contents(finished) == before


def test_a_broken_manifest(finished: Path, small_model: Path) -> None:
    (finished / "manifest.json").write_text("{")
    message, hint = refusal(lambda: crashing.repair(small_model, finished))
    assert message.startswith(f"{finished / 'manifest.json'} is not valid JSON")
    assert hint == "another -o, or --force to overwrite it"


def test_statistics_that_are_not_there(refuse: Callable[..., str], small_model: Path) -> None:
    plan = ("plan", small_model, "--keep", "0.5", "--calibration")
    assert refuse(*plan, "nowhere") == (
        f"error: nowhere holds no statistics\ntry:   tenp-edge calibrate {small_model} -o nowhere"
    )
    assert refuse(*plan, "scores.zip") == (
        "error: scores.zip does not exist\ntry:   the scores.zip that tenp-edge pack OUT writes"
    )


def test_the_output_of_compress_is_not_the_statistics(finished: Path) -> None:
    assert refusal(lambda: load_statistics(finished)) == (
        f"{finished} holds no statistics itself",
        f"--calibration {finished / 'calibration'}",
    )
