"""What is done of a job on disk, and what is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tenp_edge.errors import UserError
from tenp_edge.forward.hidden_states import FileStates
from tenp_edge.forward.layer_job import LayerJob, Streams
from tenp_edge.progress import QuietProgress

SHAPE = (2, 3, 4)


def job(directory: Path, **info: object) -> LayerJob:
    return LayerJob(directory, "adding", info, 3, ("one", "two"), SHAPE, torch.float32, ".json")


class Notes(QuietProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def zeros(states: FileStates) -> None:
    states.write(0, torch.zeros(SHAPE))


def adding(this: LayerJob, stop: int | None = None) -> Callable[[int, Streams, Streams], None]:
    """Adds 1 a layer to the first stream and 10 to the other; fails in layer ``stop``, late."""

    def step(index: int, before: Streams, after: Streams) -> None:
        for name, amount in (("one", 1), ("two", 10)):
            after[name].write(0, before[name].read(0, 2) + amount)
        value = float(after["two"].read(1, 2).mean())
        this.result(index).write_text(json.dumps({"value": value}))
        if index == stop:
            raise KeyboardInterrupt

    return step


def run(this: LayerJob, stop: int | None = None) -> list[str]:
    notes = Notes()
    this.run(zeros, adding(this, stop), "adding", "added", notes)
    return notes.said


def test_a_job_goes_on_where_it_was(tmp_path: Path) -> None:
    """A layer whose result was written but not what it passes on is done again."""
    this = job(tmp_path, seed=1)
    assert this.record.read() is None
    this.begin(this.states_bytes, "adding")
    assert this.record.read() == {"seed": 1} and this.next_layer() is None
    with pytest.raises(KeyboardInterrupt):
        run(this, stop=1)
    assert this.result(1).is_file() and this.next_layer() == 1
    left = sorted(file.name for file in this.partial.glob("*.bin*"))
    assert left == ["one-1.bin", "two-1.bin"]
    assert run(this) == ["continuing: 1 of 3 layers are added"]
    assert [json.loads(this.result(i).read_text())["value"] for i in range(3)] == [10, 20, 30]
    assert this.next_layer() == 3
    assert this.states(3)["one"].read(0, 1).unique().tolist() == [3]


def test_another_job_begins_anew(tmp_path: Path) -> None:
    this = job(tmp_path, seed=1)
    this.begin(0, "adding")
    run(this)
    other = job(tmp_path, seed=2)
    assert other.record.found() is None
    other.begin(0, "adding")
    assert other.next_layer() is None and not other.result(0).is_file()
    with pytest.raises(UserError, match=r"^adding needs "):
        other.begin(2**62, "adding")
    other.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_result_is_made_again(tmp_path: Path) -> None:
    this, notes = job(tmp_path), Notes()

    def load() -> str:
        raise UserError("sums.json is damaged", "calculate again")

    assert this.load_finished("sums.json", load, "adding again", notes) is None
    assert notes.said == []
    (tmp_path / "sums.json").touch()
    assert this.load_finished("sums.json", load, "adding again", notes) is None
    assert notes.said == ["sums.json is damaged; adding again"]
    assert this.load_finished("sums.json", lambda: "whole", "adding again", notes) == "whole"
