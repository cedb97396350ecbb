"""Which job a record is of, and what is done of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tenp_edge.errors import UserError
from tenp_edge.resumable import JobRecord


def record(directory: Path, **identity: object) -> JobRecord:
    return JobRecord(directory / "job.json", identity, {"about": "sums", "steps": {}})


def test_a_record_keeps_what_is_done(tmp_path: Path) -> None:
    this = record(tmp_path, seed=1)
    assert this.read() is None and this.found() is None
    assert this.state() == {"seed": 1, "about": "sums", "steps": {}}
    this.write({"steps": {"first": 5}})
    assert this.found() == {"seed": 1, "about": "sums", "steps": {"first": 5}}
    assert list(json.loads(this.file.read_text())) == ["seed", "about", "steps"]
    this.write()
    assert this.found() == {"seed": 1, "about": "sums", "steps": {}}


@pytest.mark.parametrize("other", [{"seed": 2}, {"seed": 1, "pruned": True}, {}])
def test_nothing_of_another_job_is_done(tmp_path: Path, other: dict[str, object]) -> None:
    """One that says more of itself is another one too."""
    this = record(tmp_path, seed=1)
    record(tmp_path, **other).write({"steps": {"first": 5}})
    assert this.read() == {**other, "about": "sums", "steps": {"first": 5}}
    assert this.found() is None and this.state()["steps"] == {}


def test_what_an_older_record_does_not_say_is_empty(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('{"seed": 1}')
    assert record(tmp_path, seed=1).found() == {"seed": 1, "about": "sums", "steps": {}}


def test_a_damaged_record(tmp_path: Path) -> None:
    this = record(tmp_path, seed=1)
    this.file.write_text('{"seed":')
    with pytest.raises(UserError, match=r"job\.json is not valid JSON") as refused:
        this.state()
    assert refused.value.hint == "delete it"
