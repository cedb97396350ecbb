"""How many sequences a server runs at a time: what each takes, and what the plan has room for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
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
from tenp_edge.units import format_size

# As llama-server has it.
DEFAULT_PARALLEL = 4
# What a server takes beside what `run` takes: HTTP, its schemas (docs/memory.md).
_SERVER_BYTES = 38 * 2**20


def planned_parallel(file: Path, options: RunOptions) -> int:
    """How many sequences a server of ``file`` has where nobody says: `DEFAULT_PARALLEL`, or as many
    as stay below the budget that the file was planned for, with the one that the plan counted; one
    for ONNX, whose graphs have no more."""
    if is_onnx(file):
        return 1
    planned = _planned(file, options)
    if planned is None or not planned.own:
        return DEFAULT_PARALLEL
    one = _predicted(file, planned.run)
    if one is None:
        return 1
    return max(1, min(DEFAULT_PARALLEL, 1 + (planned.budget - one) // planned.own))


@dataclass(frozen=True)
class ServerMemory:
    """Bytes: what a server takes at most until a request asks for a grammar, with ``parallel``
    requests at a time, and the ``budget`` that its file was planned for, as `run` takes it."""

    parallel: int
    total: int
    budget: int

    def __str__(self) -> str:
        requests = "one request" if self.parallel == 1 else f"{self.parallel} requests"
        text = f"takes up to {format_size(self.total)} with {requests} at a time"
        planned = format_size(self.budget)
        if self.total <= self.budget:
            return f"{text}, of the {planned} that the file was planned for"
        own = format_size(_SERVER_BYTES)
        return f"{text}: the file was planned for {planned}, without the server's own {own}"


def server_memory(file: Path, options: RunOptions) -> ServerMemory | None:
    """Of a server of ``file``; None for one that was planned for no budget, or if nobody knows."""
    planned = None if is_onnx(file) else _planned(file, options)
    one = None if planned is None else _predicted(file, planned.run)
    if planned is None or one is None:
        return None
    total = one + (options.parallel - 1) * planned.own + _SERVER_BYTES
    return ServerMemory(options.parallel, total, planned.budget)


@dataclass(frozen=True)
class _Planned:
    """A ``run`` of a file that was planned for a ``budget``; ``own``: `sequence_bytes`."""

    run: MemoryRun
    budget: int
    own: int


def _planned(file: Path, options: RunOptions) -> _Planned | None:
    """None for a file that was planned for no budget."""
    return _read_planned(file, replace(options, parallel=1, note=None))


@cache  # A server asks for its sequences, then for its memory; vocabularies take long to read.
def _read_planned(file: Path, options: RunOptions) -> _Planned | None:
    header = read_header(file)
    planned, facts = planned_in_gguf(header.fields), _facts(header)
    if facts is None or planned is None or not planned.ram_budget:
        return None
    chosen = chosen_run(options, header)
    run = MemoryRun(chosen.context, chosen.ubatch, chosen.kv_type, thread_count(options.threads))
    return _Planned(run, planned.ram_budget, sequence_bytes(facts, run))


@cache  # It takes a process and a second.
def _predicted(file: Path, run: MemoryRun) -> int | None:
    """Bytes that `run` takes at most; None if nobody knows: the file's own runtime will say why."""
    from tenp_edge.runtime.child import ChildError
    from tenp_edge.runtime.memory.peak import predict_peak  # and with it, subprocesses

    try:
        return predict_peak(file, run).total_bytes
    except ChildError:
        return None


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
