"""Where the history is kept, and that it stays small."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest
from prompt_toolkit.history import InMemoryHistory

from tenp_edge.cli.chat import editor
from tenp_edge.cli.chat.history import history_file


def test_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert history_file({"TENP_EDGE_HISTORY": ""}) is None
    assert history_file({"TENP_EDGE_HISTORY": str(tmp_path / "h")}) == tmp_path / "h"
    assert history_file({"TENP_EDGE_HISTORY": "~nobody-here/h"}) is None
    stated = {"XDG_STATE_HOME": str(tmp_path)}
    assert history_file(stated) == tmp_path / "tenp-edge" / "history"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "platform", "linux")
    assert history_file({}) == tmp_path / ".local" / "state" / "tenp-edge" / "history"
    monkeypatch.setattr(sys, "platform", "darwin")
    home = tmp_path / "Library" / "Application Support"
    assert history_file({}) == home / "tenp-edge" / "history"


def test_a_history_stays_small_and_its_owners(tmp_path: Path) -> None:
    file = tmp_path / "state" / "history"
    history = editor._history(str(file))
    for number in range(3):
        history.append_string(f"question {number}\nin two lines")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    with file.open("a") as stream:
        stream.write("\n# 2026-11-27\n+again\n" * 2**14)
    kept = list(editor._history(str(file)).load_history_strings())
    assert 5000 < len(kept) < 2**14 and set(kept) == {"again"}
    assert file.stat().st_size <= 2**17 and stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_history_that_cannot_be_written_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    history = editor._history(str(tmp_path / "file" / "history"))
    assert isinstance(history, InMemoryHistory)


@pytest.mark.parametrize(
    ("typed", "is_open", "text"),
    [
        ("a line", False, "a line"),
        ('"""', True, ""),
        ('"""two\nlines', True, "two\nlines"),
        ('"""two\nlines"""', False, "two\nlines"),
        ('say """ twice', False, 'say """ twice'),
    ],
)
def test_three_quotes(typed: str, is_open: bool, text: str) -> None:
    assert editor.is_open(typed) is is_open
    assert editor.unquoted(typed) == text
