"""How many sequences a server runs at a time: what each takes, and what the plan has room for."""

from __future__ import annotations

from pathlib import Path

from tenp_edge.models.mixers import state_bytes
from tenp_edge.runtime.gguf.file_origin import is_ours, is_per_expert
from tenp_edge.runtime.gguf.header import Header, read_header
from tenp_edge.runtime.gguf.model_metadata import Facts, read_facts, read_stacked
from tenp_edge.runtime.memory.footprint import (
    STATE_SNAPSHOTS,
    MemoryRun,
    cache_places,
    known_kv_type,
)
from tenp_edge.runtime.memory.planned_run import planned_in_gguf
from tenp_edge.runtime.onnx.directory import is_onnx
from tenp_edge.runtime.opening import RunOptions, chosen_run
from tenp_edge.runtime.session import thread_count

# As llama-server has it.
DEFAULT_PARALLEL = 4


def planned_parallel(file: Path, options: RunOptions) -> int:
    """How many sequences a server of ``file`` has where nobody says: `DEFAULT_PARALLEL`, or as many
    as stay below the budget that the file was planned for, with the one that the plan counted; one
    for ONNX, whose graphs have no more."""
    if is_onnx(file):
        return 1
    header = read_header(file)
    planned, facts = planned_in_gguf(header.fields), _facts(header)
    if facts is None or planned is None or not planned.ram_budget:
        return DEFAULT_PARALLEL
    chosen = chosen_run(options, header)
    run = MemoryRun(chosen.context, chosen.ubatch, chosen.kv_type, thread_count(options.threads))
    own = sequence_bytes(facts, run)
    if not own:
        return DEFAULT_PARALLEL
    from tenp_edge.runtime.child import ChildError
    from tenp_edge.runtime.memory.peak import predict_peak  # and with it, subprocesses

    try:
        left = planned.ram_budget - predict_peak(file, run).total_bytes
    except ChildError:  # Nobody knows; the file's own runtime will say why.
        return 1
    return max(1, min(DEFAULT_PARALLEL, 1 + left // own))


def _facts(header: Header) -> Facts | None:
    """None for a file that is not ours."""
    if not is_ours(header.fields):
        return None
    return (read_facts if is_per_expert(header.fields) else read_stacked)(header)


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
