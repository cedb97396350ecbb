"""Peak resident memory of a command, by the system's own account, on Linux, macOS and Windows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tenp_edge.runtime.memory.resident import in_bytes, working_set

# A small process between: what a process starts with counts as its peak, and a child starts as a
# copy of its parent. It writes the peak, in ru_maxrss's unit, and the exit status.
_LAUNCHER = """
import os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(child, 0)
os.write(1, b"%d %d" % (usage.ru_maxrss, os.waitstatus_to_exitcode(status)))
"""


@dataclass(frozen=True)
class Finished:
    """A command that ended: its peak resident bytes, its exit status, and what it said."""

    peak_bytes: int
    status: int
    stderr: str


def peak_of(command: Sequence[str], stdin: str, environment: Mapping[str, str]) -> Finished:
    """Run ``command`` to its end and ask the system how much memory it held at most."""
    if sys.platform == "win32":
        return _peak_on_windows(command, stdin, environment)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", _LAUNCHER, *command],
        input=stdin.encode(),
        capture_output=True,
        env=environment,
        check=True,
    )
    peak, status = map(int, done.stdout.split())
    return Finished(in_bytes(peak), status, done.stderr.decode(errors="replace"))


def _peak_on_windows(
    command: Sequence[str], stdin: str, environment: Mapping[str, str]
) -> Finished:
    """A process's counters can be read as long as somebody holds it."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        _, stderr = process.communicate(stdin.encode())
        peak = working_set(int(process._handle)).PeakWorkingSetSize  # type: ignore[attr-defined]
    return Finished(peak, process.returncode, stderr.decode(errors="replace"))
