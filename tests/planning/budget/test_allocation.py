"""Allocators: legal multiples, exact counts, the largest legal plan not above the ratio."""

from __future__ import annotations

import pytest
import torch

from tenp_edge.planning.budget.allocation import (
    Shape,
    Trapezoid,
    drop,
    drop_count,
    free,
    pinned_trapezoid,
    trapezoid,
    trapezoid_widths,
    uniform,
    whole_counts,
)
from tenp_edge.planning.space import Space

# Qwen1.5-MoE (1408 is no multiple of 256), DeepSeek-V2-Lite, the tiny test models, an odd one.
SPACES = [
    Space(tuple(range(24)), 60, 1408, 32),
    Space(tuple(range(24)), 60, 1408, 256),
    Space(tuple(range(1, 27)), 64, 1408, 32),
    Space((0, 1, 2), 8, 96, 32),
    Space((1, 3), 5, 100, 32),
]
RATIOS = [0.25, 0.34, 0.5, 0.6, 0.6666, 0.75, 0.9, 0.999]


def total(widths: dict[int, tuple[int, ...]]) -> int:
    return sum(map(sum, widths.values()))


def test_legal_widths_are_multiples_and_the_full_width() -> None:
    assert Space((0,), 1, 1408, 256).legal_widths == (256, 512, 768, 1024, 1280, 1408)
    assert Space((0,), 1, 96, 32).legal_widths == (32, 64, 96)
    assert Space((0,), 1, 32, 32).legal_widths == (32,)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("keep", RATIOS)
def test_uniform_is_the_widest_legal_width_within_the_ratio(space: Space, keep: float) -> None:
    neurons = max(space.budget(keep), space.total_experts * space.multiple)
    width = uniform(space, neurons)[space.layers[0]][0]
    assert width in space.legal_widths
    assert width * space.total_experts <= neurons
    wider = [w for w in space.legal_widths if w > width]
    assert wider and wider[0] * space.total_experts > neurons


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("keep", RATIOS)
def test_trapezoid_fits_and_one_more_whole_expert_would_not(space: Space, keep: float) -> None:
    neurons = max(space.budget(keep), space.total_experts * space.multiple)
    split = trapezoid(space, neurons, keep / 2)
    assert split.narrow in space.cut_widths
    assert 0 <= split.whole < space.total_experts
    assert split.neurons(space) <= neurons < split.neurons(space) + space.full - split.narrow


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("keep", RATIOS)
def test_a_pinned_share_of_whole_experts_is_kept_and_only_beta_floors(
    space: Space, keep: float
) -> None:
    split = pinned_trapezoid(space, space.budget(keep), keep / 4)
    assert split.whole == int(keep / 4 * space.total_experts + 0.5)
    if split.neurons(space) <= space.budget(keep):
        wider = Trapezoid(split.whole, split.narrow + space.multiple)
        assert wider.neurons(space) > space.budget(keep) or wider.narrow >= space.full
    else:
        assert split.narrow == space.multiple


def test_the_paper_s_figures() -> None:
    """rho = 0.6: Qwen1.5-MoE with alpha 0.30 has beta 0.43, DeepSeek-V2-Lite 0.20 and 0.5."""
    qwen, deepseek = SPACES[1], SPACES[2]
    exact = Space(qwen.layers, qwen.experts, qwen.full, 1)
    assert trapezoid(exact, exact.budget(0.6), 0.30).narrow / 1408 == pytest.approx(0.43, abs=0.002)
    exact = Space(deepseek.layers, deepseek.experts, deepseek.full, 1)
    assert trapezoid(exact, exact.budget(0.6), 0.20).narrow / 1408 == pytest.approx(0.5, abs=0.002)


def test_everything_kept_is_everything_whole() -> None:
    space = SPACES[3]
    assert trapezoid(space, space.total_neurons, 0.5).neurons(space) == space.total_neurons


@pytest.mark.parametrize("shape", [Shape(1, 2), Shape(3, 1), Shape(1, 1, 0.2), Shape(0, 1, 2)])
@pytest.mark.parametrize("layers", [1, 2, 7, 24])
def test_whole_counts_sum_exactly(shape: Shape, layers: int) -> None:
    weights = shape.weights(layers)
    if layers == 1 or sum(weights) > 0:
        for count in range(0, layers * 9 + 1, 5):
            counts = whole_counts(weights, count, 9)
            assert sum(counts) == count
            assert all(0 <= c <= 9 for c in counts)


def test_whole_counts_by_hand() -> None:
    """7 over weights 1, 1.5, 2 is 1.56, 2.33, 3.11: the largest remainder, .56, rounds up."""
    assert Shape(1, 2).weights(3) == [1.0, 1.5, 2.0]
    assert whole_counts([1.0, 1.5, 2.0], 7, 8) == [2, 2, 3]
    # 20 would be 4.4, 6.7, 8.9: the last takes its 8, the other 12 split 1 : 1.5.
    assert whole_counts([1.0, 1.5, 2.0], 20, 8) == [5, 7, 8]
    assert whole_counts([0.0, 0.0, 1.0], 10, 8) == [1, 1, 8]
    assert Shape(1, 1, 0.5).weights(3) == [1.0, 0.5, 1.0]


def test_trapezoid_widths_follow_the_ranking() -> None:
    space = Space((4, 5), 3, 96, 32)
    widths = trapezoid_widths(space, Trapezoid(3, 32), [1, 2], {4: (2, 0, 1), 5: (1, 0, 2)})
    assert widths == {4: (32, 32, 96), 5: (96, 96, 32)}


@pytest.mark.parametrize(
    ("keep", "top_k", "groups", "topk_group", "expected"),
    [
        (0.6, 4, 1, 1, 36),
        (0.01, 4, 1, 1, 4),
        (1.0, 4, 1, 1, 60),
        (0.6, 6, 4, 2, 36),
        (0.01, 6, 4, 2, 12),  # three in each group: the two that are chosen hold top-k
        (0.01, 2, 4, 4, 8),  # two in each group: it is scored by its best two
    ],
)
def test_removal_keeps_round_r_e(
    keep: float, top_k: int, groups: int, topk_group: int, expected: int
) -> None:
    assert drop_count(60, keep, top_k, groups, topk_group) == expected


def test_removal_takes_the_same_number_from_every_group() -> None:
    space = Space((0,), 8, 96, 32)
    ranking = {0: (0, 1, 2, 3, 4, 5, 6, 7)}
    assert drop(space, 4, ranking) == {0: (96, 96, 96, 96, 0, 0, 0, 0)}
    assert drop(space, 4, ranking, groups=2) == {0: (96, 96, 0, 0, 96, 96, 0, 0)}


def test_free_widths_by_hand() -> None:
    """Steps of 32: expert 0 gains 9, 5, 1, expert 1 gains 4, 3, 2 (the first is always kept)."""
    space = Space((0,), 2, 96, 32)
    gains = torch.tensor([[9.0, 14, 15], [4, 7, 9]], dtype=torch.float64)
    assert free(space, 64, gains).tolist() == [32, 32]
    assert free(space, 96, gains).tolist() == [64, 32]
    assert free(space, 128, gains).tolist() == [64, 64]
    assert free(space, 160, gains).tolist() == [64, 96]
    assert free(space, 191, gains).tolist() == [64, 96]
    assert free(space, 192, gains).tolist() == [96, 96]


def test_free_is_optimal_and_full() -> None:
    """Against every combination of legal widths; 100 = 32 + 32 + 32 + 4 has a short last step."""
    space = Space((0,), 3, 100, 32)
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(3, 100, generator=generator, dtype=torch.float64)
    ends = torch.tensor(space.legal_widths) - 1
    gains = scores.sort(dim=1, descending=True).values.cumsum(dim=1)[:, ends]
    combinations = torch.cartesian_prod(*[torch.arange(4)] * 3)
    legal = torch.tensor(space.legal_widths)
    for neurons in (96, 128, 160, 192, 224):
        sizes = legal[combinations].sum(dim=1)
        values = gains[torch.arange(3), combinations].sum(dim=1)
        best = values[sizes <= neurons].max()
        chosen = free(space, neurons, gains)
        value = gains[torch.arange(3), torch.searchsorted(legal, chosen)].sum()
        assert int(chosen.sum()) <= neurons
        assert value >= 0.99 * best
