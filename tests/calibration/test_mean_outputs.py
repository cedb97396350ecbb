"""The constant of an expert without neurons: by the definition, the one that loses least."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.calibrating import run, two_domains

from tenp_edge.calibration.mean_outputs import MeanNeurons
from tenp_edge.calibration.merging import merge_statistics

WIDTH, HIDDEN, TOKENS = 10, 6, 40


def test_it_takes_off_what_it_does() -> None:
    draw = torch.Generator().manual_seed(1)
    m = torch.randn(TOKENS, WIDTH, generator=draw) + 0.5
    weights, down = torch.rand(TOKENS, generator=draw), torch.randn(HIDDEN, WIDTH, generator=draw)
    found = MeanNeurons(3, WIDTH)
    for part in (slice(0, 15), slice(15, TOKENS)):
        found.add(1, torch.nn.functional.pad(m[part], (0, 0, 0, 7), value=9.0), weights[part])
    output = m @ down.T
    constant = down @ found.means()[1].float()

    def loss(given: torch.Tensor) -> float:
        return float((weights[:, None] * (output - given)).square().sum()) / 2.0

    nothing = torch.zeros(HIDDEN)
    assert found.taken_off(1, down, 2.0) == pytest.approx(loss(nothing) - loss(constant), rel=1e-3)
    for shift in torch.eye(HIDDEN):
        assert loss(constant) < min(loss(constant + 0.1 * shift), loss(constant - 0.1 * shift))
    assert found.taken_off(0, down, 2.0) == 0 and not found.means()[0].any()


def test_statistics_hold_it_and_merged_ones_do_not(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model = checkpoint_of("qwen3_moe")
    first, second = (run(model, tmp_path / d.name, [d]) for d in two_domains())
    layer = first.layers[0]
    means, taken_off = first.means(layer)
    losses = first.elimination(layer, "joint").losses[:, 0]
    assert first.has_means and means.shape == (first.info["experts"], first.info["width"])
    assert (taken_off >= 0).all() and (taken_off <= losses * (1 + 1e-5)).all()
    assert not merge_statistics([first, second], tmp_path / "merged").has_means
