"""How many threads can compute at a time, where nobody says how many should."""

from __future__ import annotations

import math
import os

from tenp_edge.cgroups import cpu_quota


def logical_cores() -> int:
    """Cores that this process may use."""
    available = getattr(os, "sched_getaffinity", None)
    return len(available(0)) if available else os.cpu_count() or 1


def usable_threads() -> int:
    """One for every core that this process may use, or that its container's quota of time is
    worth, begun ones counted: more only wait for each other while they all are held up."""
    quota = cpu_quota()
    cores = logical_cores()
    return cores if quota is None else min(cores, max(1, math.ceil(quota)))
