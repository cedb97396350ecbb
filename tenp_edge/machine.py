"""What this machine has: memory, cores, instruction sets, accelerators. Light: nothing is loaded
but psutil, and that only where the platform's files do not say it.

The limits of a container count (`cgroups`).
"""

from __future__ import annotations

import ctypes
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tenp_edge import cgroups
from tenp_edge.threads import logical_cores, usable_threads

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
    limits = list(cgroups.memory_limits())
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
    return Cores(logical_cores(), physical_cores(), cgroups.cpu_quota(), _processor())


def physical_cores() -> int:
    """Cores to compute on: logical ones come in pairs on most machines with more than four."""
    logical = logical_cores()
    return min(usable_threads(), logical if logical <= 4 else logical // 2)


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
