"""Loading a session stays linear in the number of layers, and blocks of any size compute alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_onnx_load import big_config, export, load
from random_checkpoint import write_random_checkpoint
from support.onnx_cases import assert_equal_runs, torch_logits


def test_blocks_load_in_a_fraction_of_the_time(tmp_path: Path) -> None:
    """Eight layers: about half the CPU seconds of an If per expert, by machine and load; the share
    falls with layers and with experts."""
    checkpoint = write_random_checkpoint(tmp_path / "model", big_config(8, 64, 16, 8))
    graphs = {block: export(checkpoint, tmp_path / f"{block}", block) for block in (16, 1)}
    blocks = min(load(graphs[16])["cpu_seconds"] for _ in range(2))
    assert 1.5 * blocks < load(graphs[1])["cpu_seconds"]


@pytest.mark.parametrize("experts", [16, 17, 35])
def test_blocks_equal_torch(experts: int, tmp_path: Path) -> None:
    """One block exactly, a block of one expert at the end, three blocks."""
    checkpoint = write_random_checkpoint(tmp_path / "model", big_config(2, experts))
    export(checkpoint, tmp_path / "out", 16)
    assert_equal_runs(tmp_path / "out", torch_logits(checkpoint))
