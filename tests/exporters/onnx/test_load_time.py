"""Few Ifs, with whose number the time to load grows, and blocks of any size compute alike."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
from bench_onnx_load import big_config, export
from random_checkpoint import write_random_checkpoint
from support.onnx_cases import assert_equal_runs, torch_logits

from tenp_edge.exporters.onnx.graph.dispatch_rows import BLOCK


def test_experts_share_an_if(tmp_path: Path) -> None:
    """What a session loads by is counted, for seconds depend on the machine: onnxruntime resolves
    every If's branches against all of the graph around them. `bench_onnx_load.py` times it."""
    checkpoint = write_random_checkpoint(tmp_path / "model", big_config(2, 64, 16, 8))
    shared, alone = (_nodes(export(checkpoint, tmp_path / f"{n}", n)) for n in (BLOCK, 1))
    assert BLOCK == 16 and shared["If"] == 2 * 64 // 16 and alone["If"] == 2 * 64
    others = (nodes.total() - nodes["If"] for nodes in (shared, alone))
    assert len(set(others)) == 1


def _nodes(graph: Path) -> Counter[str]:
    """Of the outer graph, by operator."""
    model = onnx.load(graph, load_external_data=False)
    branches = [a.g.node for node in model.graph.node for a in node.attribute if a.HasField("g")]
    assert not any(node.op_type == "If" for nodes in branches for node in nodes)
    return Counter(node.op_type for node in model.graph.node)


@pytest.mark.parametrize("experts", [16, 17, 35])
def test_blocks_equal_torch(experts: int, tmp_path: Path) -> None:
    """One block exactly, a block of one expert at the end, three blocks."""
    checkpoint = write_random_checkpoint(tmp_path / "model", big_config(2, experts))
    export(checkpoint, tmp_path / "out", 16)
    assert_equal_runs(tmp_path / "out", torch_logits(checkpoint))
