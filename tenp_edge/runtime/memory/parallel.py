"""How many sequences a server runs at a time: what each takes, and what the plan has room for."""

from __future__ import annotations

from pathlib import Path

from tenp_edge.errors import UserError
from tenp_edge.models.mixers import state_bytes
from tenp_edge.runtime.gguf.model_metadata import Facts
from tenp_edge.runtime.memory.footprint import (
    STATE_SNAPSHOTS,
    MemoryRun,
    PlannedRun,
    cache_places,
    known_kv_type,
)

# As llama-server has it.
DEFAULT_PARALLEL = 4
# llama.cpp's LLAMA_MAX_SEQ is 256; a graph here has some nodes for each.
MOST_PARALLEL = 64


def check_parallel(parallel: int) -> None:
    """Raise UserError for a number of sequences that nothing can run."""
    if not 1 <= parallel <= MOST_PARALLEL:
        raise UserError(f"--parallel is {parallel}", f"--parallel of 1 to {MOST_PARALLEL}")


def sequence_bytes(facts: Facts, run: MemoryRun) -> int:
    """What every sequence beside the first takes: all of them share the places of the context, but
    each has the rings of its windows, and its states with their snapshots."""
    row_bytes = known_kv_type(run.kv_type).row_bytes
    rings = sum(
        cache_places(run.context, attention.window, run.ubatch)
        * sum(map(row_bytes, attention.cache_rows))
        for attention in facts.attention.values()
        if attention.window is not None
    )
    return rings + (1 + STATE_SNAPSHOTS) * state_bytes(facts.mixers)


def planned_parallel(
    file: Path, facts: Facts | None, run: MemoryRun, planned: PlannedRun | None
) -> int:
    """`DEFAULT_PARALLEL`, or as many as stay below the budget that ``file`` was planned for, with
    the one that the plan counted."""
    own = 0 if facts is None else sequence_bytes(facts, run)
    if not own or planned is None or not planned.ram_budget:
        return DEFAULT_PARALLEL
    from tenp_edge.runtime.memory.peak import predict_peak  # and with it, subprocesses

    left = planned.ram_budget - predict_peak(file, run).total_bytes
    return max(1, min(DEFAULT_PARALLEL, 1 + left // own))
