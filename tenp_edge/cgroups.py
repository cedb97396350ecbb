"""The limits of a container: Linux' control groups, version 1 and 2, of this process and of those
above it. Light: every command may ask."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")
# "No limit" of version 1 is the largest number of pages.
_NO_LIMIT = 2**60


def cpu_quota() -> float | None:
    """Cores' worth of time that this process may take, None without a limit: the smallest of all
    groups around it, since each of them has its own and none can give more than those above."""
    return min([*_quotas_of_version_2(), *_quotas_of_version_1()], default=None)


def _quotas_of_version_2() -> Iterator[float]:
    for group in _groups(""):
        with suppress(OSError, ValueError):  # "max" is no number
            quota, period = (group / "cpu.max").read_text().split()
            yield int(quota) / int(period)


def _quotas_of_version_1() -> Iterator[float]:
    for group in _groups("cpu"):
        with suppress(OSError, ValueError):
            quota = int((group / "cpu.cfs_quota_us").read_text())
            if quota > 0:
                yield quota / int((group / "cpu.cfs_period_us").read_text())


def memory_limits() -> Iterator[tuple[int, int]]:
    """(limit, used without what can be dropped) of every group around this process, in bytes."""
    for group in _groups(""):
        yield from _limit(group / "memory.max", group / "memory.current", group / "memory.stat")
    for group in _groups("memory"):
        used = group / "memory.usage_in_bytes"
        yield from _limit(group / "memory.limit_in_bytes", used, group / "memory.stat")


def _limit(most: Path, used: Path, stat: Path) -> Iterator[tuple[int, int]]:
    with suppress(OSError, ValueError):
        limit = int(most.read_text())
        if limit < _NO_LIMIT:
            yield limit, max(int(used.read_text()) - _droppable(stat), 0)


def _droppable(stat: Path) -> int:
    """Bytes of files that are read again when they are needed."""
    with suppress(OSError):
        found = re.search(r"^(?:total_)?inactive_file (\d+)$", stat.read_text(), re.MULTILINE)
        return int(found[1]) if found else 0
    return 0


def _groups(controller: str) -> Iterator[Path]:
    """The control groups of this process, the innermost first, as far as they are visible."""
    root = _ROOT / controller
    with suppress(OSError, ValueError):  # names may be no UTF-8
        for line in _OWN.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                inner = root / path.lstrip("/")
                within = [inner, *inner.parents] if ".." not in inner.parts else []
                yield from (g for g in within if g.is_relative_to(root) and g != root)
    yield root
