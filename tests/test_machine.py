"""What the machine has, and what a container leaves of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tenp_edge import cgroups, machine

GIB = 2**30
Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a control file of a machine without limits."""
    monkeypatch.setattr(cgroups, "_ROOT", tmp_path)
    monkeypatch.setattr(machine, "_physical", lambda: (16 * GIB, 12 * GIB))

    def write_file(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    return write_file


def test_without_a_limit_it_is_the_machine(write: Write) -> None:
    write("memory.max", "max\n")
    assert machine.memory() == machine.Memory(16 * GIB, 12 * GIB)


def test_a_container_of_version_2(write: Write) -> None:
    write("memory.max", f"{4 * GIB}\n")
    write("memory.current", f"{3 * GIB}\n")
    write("memory.stat", f"anon 5\ninactive_file {GIB}\n")  # which is dropped when needed
    write("cpu.max", "150000 100000\n")
    assert machine.memory() == machine.Memory(4 * GIB, 2 * GIB, limited=True)
    assert machine.cores().quota == 1.5


def test_a_container_of_version_1(write: Write) -> None:
    write("memory/memory.limit_in_bytes", f"{4 * GIB}\n")
    write("memory/memory.usage_in_bytes", f"{GIB}\n")
    write("cpu/cpu.cfs_quota_us", "50000\n")
    write("cpu/cpu.cfs_period_us", "100000\n")
    assert machine.memory() == machine.Memory(4 * GIB, 3 * GIB, limited=True)
    assert machine.cores().quota == 0.5


def test_a_limit_above_the_memory_is_none(write: Write) -> None:
    write("memory/memory.limit_in_bytes", str(2**63 - 4096))
    assert machine.memory().total == 16 * GIB


def test_what_the_platforms_files_do_not_say() -> None:
    """psutil knows the same memory as the kernel's file."""
    import psutil

    assert machine._physical()[0] == psutil.virtual_memory().total
    assert machine.cores().usable >= machine.cores().physical >= 1
    assert isinstance(machine.accelerators(), tuple)
