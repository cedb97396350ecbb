"""Resident memory of this process, on Linux, macOS and Windows."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def peak_rss_bytes() -> int:
    """Peak resident memory so far: VmHWM where /proc has it, the peak working set on Windows, else
    ru_maxrss (bytes on macOS, KiB elsewhere)."""
    if _STATUS.is_file():
        return _status("VmHWM")
    if sys.platform == "win32":
        return working_set().PeakWorkingSetSize
    import resource

    return in_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def resident_bytes() -> int:
    """Resident memory now; its peak where the system does not tell (macOS)."""
    if _STATUS.is_file():
        return _status("VmRSS")
    if sys.platform == "win32":
        return working_set().WorkingSetSize
    return peak_rss_bytes()


def in_bytes(ru_maxrss: int) -> int:
    """What getrusage reports, in bytes."""
    return ru_maxrss if sys.platform == "darwin" else ru_maxrss * 1024


def _status(key: str) -> int:
    """A line of /proc/self/status, "VmHWM:   12345 kB", in bytes."""
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


class _MemoryCounters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of psapi.h: a DWORD size, page faults, then sizes in bytes."""

    _fields_ = (
        ("cb", ctypes.c_uint32),
        ("PageFaultCount", ctypes.c_uint32),
        ("PeakWorkingSetSize", ctypes.c_size_t),
        ("WorkingSetSize", ctypes.c_size_t),
        *((f"quota_{number}", ctypes.c_size_t) for number in range(4)),
        ("PagefileUsage", ctypes.c_size_t),
        ("PeakPagefileUsage", ctypes.c_size_t),
    )


def working_set(process: int | None = None) -> _MemoryCounters:
    """Windows only: what GetProcessMemoryInfo says about ``process``, by default this one.

    https://learn.microsoft.com/windows/win32/api/psapi/nf-psapi-getprocessmemoryinfo; its name in
    kernel32, which every process has loaded, is K32GetProcessMemoryInfo.
    """
    kernel = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    function = kernel.K32GetProcessMemoryInfo
    function.argtypes = [ctypes.c_void_p, ctypes.POINTER(_MemoryCounters), ctypes.c_uint32]
    counters = _MemoryCounters(cb=ctypes.sizeof(_MemoryCounters))
    handle = kernel.GetCurrentProcess() if process is None else process
    if not function(handle, ctypes.byref(counters), counters.cb):
        raise ctypes.WinError(ctypes.get_last_error())  # type: ignore[attr-defined]
    return counters
