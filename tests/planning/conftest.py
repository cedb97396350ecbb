"""A device, a model and its statistics to plan for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support import tiny, toy_exporter
from support.synthetic import write_statistics

from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.planning.options.devices import DeviceProfile, this_machine

MIB = 2**20


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeviceProfile:
    """A device that runs the toy format, which is installed as a third party's would be."""
    toy_exporter.install(tmp_path, monkeypatch)
    return replace(
        this_machine(),
        name="toy-device",
        memory_bytes=512 * MIB,
        system_bytes=100 * MIB,
        format="toy",
        layout="per-expert",
        tensor_types=("WIDE", "NARROW"),
        default_tensor_type="WIDE",
        context=1024,
        runtime_overhead_bytes=MIB,
        ubatch=32,
    )


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """One that knows more tokens than the device has."""
    directory = tmp_path_factory.mktemp("qwen3")
    return Checkpoint(tiny.make(directory, "qwen3_moe", max_position_embeddings=4096))


@pytest.fixture
def statistics(qwen3: Checkpoint, tmp_path: Path) -> Statistics:
    return write_statistics(tmp_path / "statistics", qwen3.config, qwen3.fingerprint)
