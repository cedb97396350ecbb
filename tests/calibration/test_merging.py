"""Statistics are added up once, and overwrite nothing unasked."""

from __future__ import annotations

import shutil
from pathlib import Path

import crashing
import pytest
from support.edits import refusal

from tenp_edge.verbs.calibrate import run_merge


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return crashing.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def finished(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repaired run, to be damaged; and no process is started to ask what memory it takes."""
    monkeypatch.setattr(crashing.gguf, "known_peak", crashing.not_asked)
    crashing.repair(model, tmp_path / "out")
    return tmp_path / "out"


MERGE = "tenp-edge merge WORK1 WORK2 -o WORK, of one model, and of different text or seeds"


def test_merge_counts_no_text_twice(finished: Path, tmp_path: Path) -> None:
    work, copy, out = finished / "calibration", tmp_path / "copy", tmp_path / "sum"
    assert refusal(lambda: run_merge([work], out)) == (
        "there is one directory of statistics: nothing to add to it",
        MERGE,
    )
    shutil.copytree(work, copy)
    assert refusal(lambda: run_merge([work, copy], out)) == (
        "the same text would be counted twice: two of them saw it",
        MERGE,
    )
    assert not out.exists()


def test_merge_overwrites_nothing_unasked(finished: Path) -> None:
    work = finished / "calibration"
    assert refusal(lambda: run_merge([work, work], work)) == (
        f"{work} is one of those that are added up",
        "another -o",
    )
    other = finished.parent / "other"
    assert refusal(lambda: run_merge([other, other], work)) == (
        f"{work} holds statistics already",
        "another -o, or --force to overwrite it",
    )
