"""Fixtures every test file shares."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import crashing
import pytest
import torch
from support import browser, chatting, sharing, tiny

from tenp_edge.cli import main

# Tiny tensors on one thread: threads that wait for each other made the tests five times slower.
torch.set_num_threads(1)

# A shell that starts the suite in the background has it ignore Ctrl-C, and so would every process
# of a test: the tests send interrupts and expect what a person at a terminal gets.
signal.signal(signal.SIGINT, signal.default_int_handler)

# pytest's readline tells its processes a terminal's size: output in a pipe has a width of its own.
for variable in ("COLUMNS", "LINES"):
    os.environ.pop(variable, None)


@pytest.fixture(scope="session")
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny float32 checkpoint of a family, written once a session; do not change it."""

    @cache
    def make(family: str) -> Path:
        return tiny.make(tmp_path_factory.mktemp(family), family)

    return make


@pytest.fixture(scope="session")
def chromium() -> Iterator[browser.Chromium]:
    """The one browser of the session; tests that need it are skipped on a machine without any."""
    with browser.launched() as running:
        yield running


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of `crashing`, a quarter of the tiny ones, with its text; do not change it."""
    return crashing.write_model(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def repaired(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `crashing.repair` wrote; do not change it."""
    out = tmp_path_factory.mktemp("repaired") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crashing.gguf, "known_peak", crashing.not_asked)
        crashing.repair(small_model, out)
    return out


@pytest.fixture(scope="session")
def chat_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny per-expert file with a chat template that knows 8192 tokens."""
    return chatting.make_file(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def finished(repaired: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repaired run, to be damaged; and no process is started to ask what memory it takes."""
    monkeypatch.setattr(crashing.gguf, "known_peak", crashing.not_asked)
    out = Path(shutil.copytree(repaired, tmp_path / "out"))
    recipe = out / "recipe.toml"
    recipe.write_text(recipe.read_text("utf-8").replace(str(repaired), str(out)), "utf-8")
    return out


@pytest.fixture
def refuse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What the command prints on stderr when it refuses: exit 2, nothing on stdout."""

    def run_here(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["tenp-edge", *(str(a) for a in arguments)])
        with pytest.raises(SystemExit) as stopped:
            main.main()
        printed = capsys.readouterr()
        assert stopped.value.code == 2, printed.err
        assert printed.out == ""
        lines = printed.err.splitlines()
        return "\n".join(line for line in lines if not line.startswith("note: "))

    return run_here


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a model with a card, and in ``out`` what compress made of it (merged, with
    its comparison); do not change it."""
    return sharing.make(tmp_path_factory.mktemp("shared"))
