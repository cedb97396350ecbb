"""What cannot be calibrated, what was covered, and what is in memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import plans
from support.calibrating import StopAfter, domain, run, two_domains

from tenp_edge.calibration.collect import calibrate
from tenp_edge.calibration.coverage import coverage
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.forward.experts import RaggedExperts
from tenp_edge.forward.streaming import StreamingModel


def test_pruned_checkpoints_are_refused(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of("olmoe"))
    widths = plans.cycled(checkpoint, (32, 96))
    checkpoint.config = replace(checkpoint.config, expert_widths=widths)
    with pytest.raises(UserError) as error:
        calibrate(checkpoint, two_domains(), tmp_path)
    assert str(error.value) == (
        "the checkpoint is already pruned; calibration needs the original\n"
        "try: the checkpoint it was made from"
    )
    assert not list(tmp_path.iterdir())


def test_nothing_to_calibrate_on(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        run(checkpoint_of("olmoe"), tmp_path, [])
    assert str(error.value) == "there is nothing to calibrate on\ntry: --data NAME=FILE"


def test_coverage(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    progress = StopAfter(100)
    data = [domain("code", 4), domain("few", 1, seq_len=6)]
    found = run(checkpoint_of("qwen3_moe"), tmp_path, data, progress=progress)
    report = coverage(found)
    for layer in found.layers:
        tokens = {name: found.layer(name, layer)["tokens"] for name in found.domains}
        assert report.below["code"][layer] == int((tokens["code"] < 32).sum())
        assert report.below["few"][layer] == 8  # 4 tokens, each to 2 of 8 experts
        assert report.unreached["few"][layer] == int((tokens["few"] == 0).sum()) > 0
        assert report.below_everywhere[layer] == int((sum(tokens.values()) < 32).sum())
    few = sum(report.below_everywhere.values())
    assert few > 0 and progress.notes == [
        f"{few} of 24 experts saw fewer than 32 tokens; "
        "their scores are guesses: more --samples, or a longer --seq-len"
    ]


def test_a_layer_is_freed_before_the_next_is_read(
    checkpoint_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By reference count alone: the collector may not run for many layers."""
    alive: list[weakref.ref[RaggedExperts]] = []
    make = StreamingModel.layer

    def watched(model: StreamingModel, index: int) -> torch.nn.Module:
        assert all(experts() is None for experts in alive)
        layer = make(model, index)
        alive.append(weakref.ref(layer.get_submodule("mlp.experts")))
        return layer

    monkeypatch.setattr(StreamingModel, "layer", watched)
    gc.collect()
    gc.disable()
    try:
        run(checkpoint_of("mixtral"), tmp_path, two_domains())
    finally:
        gc.enable()
    assert len(alive) == 3
