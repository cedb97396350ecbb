"""As many threads as a container's quota is worth, where nobody says how many."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tenp_edge import cgroups, machine, threads
from tenp_edge.cli import main
from tenp_edge.runtime.session import thread_count


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The control groups of a process two levels below the visible root, on eight cores."""
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path / "groups")
    monkeypatch.setattr(cgroups, "_OWN", tmp_path / "own")
    monkeypatch.setattr(threads, "logical_cores", lambda: 8)
    inner = tmp_path / "groups" / "pod" / "container"
    inner.mkdir(parents=True)
    (tmp_path / "own").write_text("0::/pod/container\n")
    return inner


@pytest.mark.parametrize(
    ("inner", "outer", "quota", "count"),
    [
        ("max 100000", "max 100000", None, 8),
        ("300000 100000", "max 100000", 3, 3),
        ("400000 100000", "150000 100000", 1.5, 2),
        ("150000 100000", "400000 100000", 1.5, 2),
        ("max 100000", "20000 100000", 0.2, 1),
        ("9600000 100000", "1600000 100000", 16, 8),
    ],
)
def test_the_smallest_quota_of_all_levels_counts(
    inner: str, outer: str, quota: float | None, count: int, container: Path
) -> None:
    (container / "cpu.max").write_text(f"{inner}\n")
    (container.parent / "cpu.max").write_text(f"{outer}\n")
    assert machine.cores().quota == quota
    assert thread_count(None) == count
    assert thread_count(5) == 5


def test_commands_that_load_torch_take_no_more(
    container: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the variable that OpenMP reads when it is loaded; one that is set stays."""
    (container / "cpu.max").write_text("250000 100000\n")
    monkeypatch.setattr(main, "logical_cores", threads.logical_cores)
    for given, wanted in ((None, "3"), ("1", "1")):
        monkeypatch.setenv("OMP_NUM_THREADS", given or "")
        if given is None:
            monkeypatch.delenv("OMP_NUM_THREADS")
        main.app(["profiles"], standalone_mode=False)
        assert os.environ["OMP_NUM_THREADS"] == wanted
