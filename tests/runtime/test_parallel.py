"""How many sequences a server has: by default, as planned, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.runtime_cases import CheckpointOf, export_ragged

from tenp_edge.errors import UserError
from tenp_edge.models import state_bytes
from tenp_edge.runtime import parallel
from tenp_edge.runtime.child import ChildError
from tenp_edge.runtime.gguf.header import read_header
from tenp_edge.runtime.gguf.model_metadata import read_facts
from tenp_edge.runtime.memory import peak
from tenp_edge.runtime.memory.footprint import STATE_SNAPSHOTS, MemoryRun, PlannedRun, RunMemory
from tenp_edge.runtime.opening import RunOptions, open_model

RUN = MemoryRun(512, 64, "F16", 1)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "nemotron_h"])
def test_what_a_sequence_takes(family: str, checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    """What two take beside one, by the runtime's own account."""
    export_ragged(checkpoint_of(family), tmp_path / "model.gguf")
    facts = read_facts(read_header(tmp_path / "model.gguf"))
    sizes = []
    for count in (1, 2):
        options = RunOptions(512, 1, 64, "F16", parallel=count)
        with open_model(tmp_path / "model.gguf", options) as session:
            assert len(session.slots) == count
            sizes.append(session.memory().kv_bytes)  # type: ignore[attr-defined]
    assert sizes[1] - sizes[0] == parallel.sequence_bytes(facts, RUN)
    if family == "nemotron_h":
        assert sizes[1] - sizes[0] == (1 + STATE_SNAPSHOTS) * state_bytes(facts.mixers)


@pytest.mark.parametrize(
    ("family", "spare", "wanted"),
    [("qwen3_moe", 0, 4), ("nemotron_h", 0, 1), ("nemotron_h", 2, 3), ("nemotron_h", 9, 4)],
)
def test_as_many_as_the_plan_leaves_room_for(
    family: str,
    spare: int,
    wanted: int,
    checkpoint_of: CheckpointOf,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``spare``: further sequences that fit below the budget. Attention alone takes no more."""
    file = tmp_path / "model.gguf"
    export_ragged(checkpoint_of(family), file)
    own = parallel.sequence_bytes(read_facts(read_header(file)), RUN)
    budget = 10**8 + spare * own
    planned = PlannedRun(RUN.context, RUN.ubatch, RUN.kv_type, budget)
    monkeypatch.setattr(parallel, "planned_in_gguf", lambda fields: planned)
    answer = RunMemory(10**8, 0, 0, 0, 0)
    monkeypatch.setattr(peak, "predict_peak", lambda path, run: answer)
    for kv_type in ("F16", "f16"):
        assert parallel.planned_parallel(file, RunOptions(512, 1, 64, kv_type)) == wanted
    memory = parallel.server_memory(file, RunOptions(512, 1, 64, "F16", parallel=wanted))
    assert memory is not None
    assert memory.total == 10**8 + (wanted - 1) * own + 38 * 2**20 > memory.budget == budget
    parallel._predicted.cache_clear()

    def died(path: Path, run: MemoryRun) -> RunMemory:
        raise ChildError("exit -9: no output")

    monkeypatch.setattr(peak, "predict_peak", died)
    found = parallel.planned_parallel(file, RunOptions(512, 1, 64, "F16"))
    assert found == (1 if own else parallel.DEFAULT_PARALLEL)
    assert parallel.server_memory(file, RunOptions(512, 1, 64, "F16")) is None


def test_what_a_server_says_of_its_memory() -> None:
    assert str(parallel.ServerMemory(1, 10 * 2**20, 2**30)) == (
        "takes up to 10.00 MiB with one request at a time, of the 1.00 GiB that the file was "
        "planned for"
    )
    assert str(parallel.ServerMemory(4, 2**30 + 2**29, 2**30)) == (
        "takes up to 1.50 GiB with 4 requests at a time: the file was planned for 1.00 GiB, "
        "without the server's own 38.00 MiB"
    )


def test_numbers_that_nothing_can_run(checkpoint_of: CheckpointOf, tmp_path: Path) -> None:
    export_ragged(checkpoint_of("qwen3_moe"), tmp_path / "model.gguf")
    for count in (0, 65):
        with pytest.raises(UserError) as caught:
            open_model(tmp_path / "model.gguf", RunOptions(parallel=count))
        assert str(caught.value) == f"--parallel is {count}\ntry: --parallel of 1 to 64"
