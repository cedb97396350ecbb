"""--quant keep --set down=blocks: neurons stay in whole blocks of the source's down matrices."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import refused
from support.gguf_sources import write_gguf
from support.synthetic import write_statistics

from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.blocks import down_block
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.planning.options.devices import load_profile
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan

PROFILE = load_profile("laptop-8gb")
BLOCKS = PlanOptions(quant="keep", keep=0.6, context=256, down="blocks")


@pytest.fixture(scope="module")
def model(
    checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    file = tmp_path_factory.mktemp("gguf") / "model.gguf"
    return Checkpoint(write_gguf(checkpoint_of("qwen3_moe"), file))


@pytest.fixture(scope="module")
def statistics(model: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    directory = tmp_path_factory.mktemp("statistics")
    return write_statistics(directory, model.config, model.fingerprint)


@pytest.mark.parametrize("method", ["adaptive", "tenp", "enp"])
def test_neurons_stay_in_whole_blocks(
    method: str, model: Checkpoint, statistics: Statistics
) -> None:
    assert down_block(model) == 32
    options = PlanOptions(**(vars(BLOCKS) | {"method": method}))
    plan = make_plan(model, PROFILE, options, statistics)
    assert plan.retained is not None and plan.keep_ratio < 0.7
    for kept in plan.retained.values():
        first = kept[::32]
        assert not (first % 32).any()
        assert kept.reshape(-1, 32).equal(first[:, None] + kept[:32] - kept[0])
    (note,) = (note for note in plan.record.notes if "whole blocks of 32" in note)
    numbers = re.fullmatch(
        r"neurons stay in whole blocks of 32, so that down keeps its bytes: predicted KL ([\d.]+), "
        r"of as many single neurons ([\d.]+)",
        note,
    )
    assert numbers is not None and float(numbers[1]) >= float(numbers[2]) > 0


def test_single_neurons_without_it(model: Checkpoint, statistics: Statistics) -> None:
    options = PlanOptions(quant="keep", keep=0.6, context=256)
    plan = make_plan(model, PROFILE, options, statistics)
    assert plan.retained is not None
    assert any((kept[::32] % 32).any() for kept in plan.retained.values())
    assert not [note for note in plan.record.notes if "whole blocks" in note]


def test_what_it_is_not_for(model: Checkpoint, tmp_path: Path) -> None:
    blocks = ("--set", "down=blocks")
    assert refused("plan", model.path, "--keep", "0.6", "--quant", "Q8_0", *blocks) == (
        "error: --set down=blocks keeps the bytes of down, which another type would not have\n"
        "try:   --quant keep\n"
    )
    keep = ("compress", model.path, "--keep", "0.6", "--quant", "keep", *blocks, "--repair")
    assert refused(*keep, "-o", tmp_path / "out").endswith(
        "error: --repair and --set heal change down, whose bytes --set down=blocks keeps\n"
        "try:   leave --repair and --set heal out, or --set down=blocks\n"
    )
    assert refused("plan", model.path, "--keep", "0.6", "--format", "onnx", "--quant", "keep") == (
        "error: format onnx cannot write keep\ntry:   --quant none|int8|int4\n"
    )
