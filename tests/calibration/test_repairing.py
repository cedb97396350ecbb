"""What repair leaves: by the definition, a ridge fitted to one half and judged on the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.calibrating import run, two_domains

from tenp_edge.calibration import repairing
from tenp_edge.calibration.merging import merge_statistics
from tenp_edge.calibration.repairing import POINTS, RIDGE, RepairSample, at_widths

WIDTH, HIDDEN, TOKENS = 64, 12, 200


class Case:
    """One expert whose neurons have a few causes in common."""

    def __init__(self, experts: int = 1) -> None:
        draw = torch.Generator().manual_seed(5)
        causes = torch.randn(TOKENS, 20, generator=draw)
        self.m = causes @ torch.randn(20, WIDTH, generator=draw)
        self.m += 0.3 * torch.randn(TOKENS, WIDTH, generator=draw)
        self.weights = torch.rand(TOKENS, generator=draw)
        self.down = torch.randn(HIDDEN, WIDTH, generator=draw)
        self.order = torch.randperm(WIDTH, generator=draw).repeat(experts, 1)

    def sample(self, experts: int = 1) -> RepairSample:
        sample = RepairSample(experts, WIDTH, torch.device("cpu"))
        for expert in range(experts):
            sample.add(expert, torch.nn.functional.pad(self.m, (0, 0, 0, 9)), self.weights)
        return sample

    def left(self, keep: int) -> float:
        """As defined."""
        rows = (self.m * self.weights[:, None]).double()
        halves, kept, cut = rows.split(TOKENS // 2), self.order[0, :keep], self.order[0, keep:]
        plain = repaired = 0.0
        for fitted, judged in (halves, halves[::-1]):
            gram = fitted.T @ fitted
            pull = RIDGE * gram.diagonal().mean() * torch.eye(keep, dtype=torch.float64)
            shares = torch.linalg.solve(gram[kept][:, kept] + pull, gram[kept][:, cut])
            lost = judged[:, cut]
            plain += float((lost @ self.down[:, cut].double().T).square().sum())
            lost = lost - judged[:, kept] @ shares
            repaired += float((lost @ self.down[:, cut].double().T).square().sum())
        return repaired / plain


def test_it_is_judged_on_the_other_half() -> None:
    case = Case()
    found = case.sample().left(case.order, lambda expert: case.down)
    assert found.shape == (POINTS + 1,) and found[0] == 1 and found[-1] == found[-2]
    for point in (4, 12, 20, 28):
        assert float(found[point]) == pytest.approx(case.left(WIDTH * point // POINTS), rel=1e-3)
    assert float(found[20]) < 0.6


def test_a_few_experts_are_looked_at_and_of_wide_ones_some_neurons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(24)
    assert case.sample(24).experts == [1, 4, 7, 10, 13, 16, 19, 22]
    one, all_alike = (case.sample(n).left(case.order, lambda e: case.down) for n in (1, 24))
    assert torch.allclose(one, all_alike)
    monkeypatch.setattr(repairing, "_LIMIT_BYTES", 8 * 32**2)
    sample = case.sample(24)
    assert sample.experts == [12] and sample.sums.shape == (2, 1, 32, 32)
    found = sample.left(case.order, lambda expert: case.down)
    assert 0 < found.min() < found.max() == 1


def test_no_token_and_no_neuron_in_common_leave_all() -> None:
    case = Case()
    empty = RepairSample(1, WIDTH, torch.device("cpu"))
    assert (empty.left(case.order, lambda expert: case.down) == 1).all()
    case.m = torch.eye(WIDTH).repeat(4, 1)[:TOKENS]
    found = case.sample().left(case.order, lambda expert: case.down)
    assert torch.allclose(found, torch.ones(POINTS + 1, dtype=torch.float64))


def test_the_curve_between_its_points() -> None:
    curve = torch.linspace(1, 0, POINTS + 1, dtype=torch.float64)
    assert torch.allclose(at_widths(curve, 96), torch.linspace(1, 0, 97, dtype=torch.float64))


def test_statistics_hold_it_and_merged_ones_do_not(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model = checkpoint_of("qwen3_moe")
    first = run(model, tmp_path / "first", two_domains()[:1])
    second = run(model, tmp_path / "second", two_domains()[1:])
    left = first.repair_left(first.layers[0])
    assert left is not None and left.shape == (POINTS + 1,) and left[0] == 1
    assert ((left >= 0) & (left <= 1)).all()
    merged = merge_statistics([first, second], tmp_path / "merged")
    assert merged.repair_left(first.layers[0]) is None
