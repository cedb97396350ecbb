"""What this machine has: memory, cores, instruction sets, accelerators. Light: nothing is loaded
but psutil, and that only where the platform's files do not say it.

The limits of a container count: Linux' control groups, version 1 and 2, of this process and of
those above it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
# "No limit" of version 1 is the largest number of pages.
_NO_LIMIT = 2**60
# What matters for the runtimes, as Linux calls it, and how it is usually written.
_INSTRUCTIONS = {
    "sse4_2": "SSE4.2",
    "avx": "AVX",
    "avx2": "AVX2",
    "fma": "FMA",
    "f16c": "F16C",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "amx_int8": "AMX int8",
    "asimd": "NEON",
    "asimddp": "dot product",
    "i8mm": "int8 matrix product",
    "sve": "SVE",
    "bf16": "BF16",
}
_APPLE = ("NEON", "dot product")
_AMD = "0x1002"


@dataclass(frozen=True)
class Memory:
    """Bytes. ``total``: of the machine or its container; ``limited``: whether the container's
    limit is the smaller; ``available``: what can be had without pushing others out."""

    total: int
    available: int
    limited: bool = False


def memory() -> Memory:
    """Of the machine, or what its container leaves."""
    total, available = _physical()
    limits = list(_limits())
    if limits:
        limit = min(limit for limit, _ in limits)
        if limit < total:
            rest = min(max(limit - used, 0) for limit, used in limits)
            return Memory(limit, min(available, rest), limited=True)
    return Memory(total, available)


def _physical() -> tuple[int, int]:
    with suppress(OSError, ValueError, KeyError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        known = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        return known["MemTotal"], known["MemAvailable"]
    import psutil

    found = psutil.virtual_memory()
    return int(found.total), int(found.available)


def _limits() -> Iterator[tuple[int, int]]:
    """(limit, used without what can be dropped) of every control group around this process."""
    for group in _groups(""):
        yield from _limit(group / "memory.max", group / "memory.current", group / "memory.stat")
    for group in _groups("memory"):
        used = group / "memory.usage_in_bytes"
        yield from _limit(group / "memory.limit_in_bytes", used, group / "memory.stat")


def _limit(most: Path, used: Path, stat: Path) -> Iterator[tuple[int, int]]:
    with suppress(OSError, ValueError):  # "max" is no number
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
    root = _CGROUPS / controller
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                inner = root / path.lstrip("/")
                within = [inner, *inner.parents] if ".." not in inner.parts else []
                yield from (g for g in within if g.is_relative_to(root) and g != root)
    yield root


# -- cores -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cores:
    """``usable``: logical cores that this process may use; ``physical``: to compute on;
    ``quota``: cores' worth of time that the container may take, None without a limit."""

    usable: int
    physical: int
    quota: float | None = None
    name: str = ""


def cores() -> Cores:
    """This machine's processor."""
    return Cores(logical_cores(), physical_cores(), _quota(), _processor())


def logical_cores() -> int:
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1


def physical_cores() -> int:
    """Cores to compute on: logical ones come in pairs on most machines with more than four."""
    logical = logical_cores()
    return logical if logical <= 4 else logical // 2


def _quota() -> float | None:
    for group in _groups(""):
        with suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            return int(quota) / int(period)
    for group in _groups("cpu"):
        with suppress(OSError, ValueError):
            quota_us = int((group / "cpu.cfs_quota_us").read_text())
            if quota_us > 0:
                return quota_us / int((group / "cpu.cfs_period_us").read_text())
    return None


def _processor() -> str:
    with suppress(OSError):
        found = re.search(r"^model name\s*: (.+)$", _cpuinfo(), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _cpuinfo() -> str:
    return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")


def instruction_sets() -> tuple[str, ...]:
    """What speeds up the runtimes here; empty where the platform does not say."""
    with suppress(OSError):
        found = re.search(r"^(?:flags|Features)\s*: (.+)$", _cpuinfo(), re.MULTILINE)
        if found:
            flags = set(found[1].split())
            return tuple(name for flag, name in _INSTRUCTIONS.items() if flag in flags)
    is_apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return _APPLE if is_apple else ()


# -- accelerators ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accelerator:
    """``memory``: bytes of its own, None where it has none or does not say."""

    name: str
    memory: int | None = None


def accelerators() -> tuple[Accelerator, ...]:
    """GPUs and NPUs that the system knows, whether or not anything here can use them."""
    return (*_nvidia(), *_amd(), *_npus(), *_apple())


def _nvidia() -> Iterator[Accelerator]:
    """By the driver's own library: no process is started."""
    name = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(name)
        if library.nvmlInit_v2():
            return
        count = ctypes.c_uint()
        library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        for index in range(count.value):
            handle, text = ctypes.c_void_p(), ctypes.create_string_buffer(96)
            sizes = (ctypes.c_ulonglong * 3)()
            if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
                continue
            library.nvmlDeviceGetName(handle, text, len(text))
            failed = library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(sizes))
            yield Accelerator(text.value.decode(errors="replace"), None if failed else sizes[0])
        library.nvmlShutdown()


def _amd() -> Iterator[Accelerator]:
    for device in sorted(Path("/sys/class/drm").glob("card[0-9]/device")):
        with suppress(OSError, ValueError):
            if (device / "vendor").read_text().strip() == _AMD:
                yield Accelerator("AMD GPU", int((device / "mem_info_vram_total").read_text()))


def _npus() -> Iterator[Accelerator]:
    for device in sorted(Path("/sys/class/accel").glob("accel*")):
        driver = device / "device" / "driver"
        yield Accelerator(f"NPU ({driver.resolve().name if driver.exists() else device.name})")


def _apple() -> Iterator[Accelerator]:
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        yield Accelerator("Apple GPU (Metal)")
