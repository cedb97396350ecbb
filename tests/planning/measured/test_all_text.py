"""Cuts on the calibrated text and on others, taken together."""

from __future__ import annotations

import pytest

from tenp_edge.planning.measured.all_text import cost_elsewhere, on_all_text
from tenp_edge.planning.measured.kl_law import predicted_kl
from tenp_edge.planning.measured.rounding_errors import MixedCost
from tenp_edge.planning.measured.trials import Trial

CUTS = [
    Trial({}, keep, loss, kl, 0.0, (kl / 2, kl / 2, 2 * kl))
    for keep, loss, kl in ((0.9, 1e-4, 1e-3), (0.7, 1e-3, 4e-3), (0.45, 1e-2, 2e-2))
]


def there(*times: float) -> list[MixedCost]:
    """So many times the middle sequence's KL."""
    pairs = zip(CUTS, times, strict=True)
    return [MixedCost(cut.predicted_loss, ratio * cut.mean_kl / 2) for cut, ratio in pairs]


def test_the_middle_sequences_are_compared_and_logarithms_lie_between_them() -> None:
    found = there(16.0, 4.0, 0.5)
    assert [cost_elsewhere(cut.predicted_loss, CUTS, found) for cut in CUTS] == pytest.approx(
        [16, 4, 1]
    )
    assert cost_elsewhere(1e-4 * 10**0.5, CUTS, found) == pytest.approx(8)
    assert cost_elsewhere(1e-7, CUTS, found) == pytest.approx(16)
    assert cost_elsewhere(1.0, CUTS, found) == 1


def test_other_text_counts_for_a_third_of_all() -> None:
    found = on_all_text(CUTS, there(8.0, 27.0, 1.0))
    ratios = [one.mean_kl / cut.mean_kl for one, cut in zip(found, CUTS, strict=True)]
    assert ratios == pytest.approx([2, 3, 1])
    assert [one.keep_ratio for one in found] == [0.9, 0.7, 0.45]


def test_cuts_between_those_that_were_measured_there_cost_what_lies_between() -> None:
    """As the probes of other ways do."""
    beside = Trial({"unit": 1.0}, 0.7, 1e-4 * 10**0.5, 2e-3, 0.0)
    found = on_all_text([*CUTS, beside], there(64.0, 1.0, 1.0))
    assert found[-1].mean_kl == pytest.approx(2 * 2e-3)


def test_of_a_plan_that_was_not_measured_here_the_law_of_the_others_speaks() -> None:
    """As after `plan --refine`, which measures plans of one size."""
    refined = Trial({}, 0.6, 2e-3, 8e-3, 0.0)
    found = [MixedCost(1e-4, 3 * predicted_kl(1e-4, [refined]))]
    assert cost_elsewhere(1e-4, [refined], found) == pytest.approx(3)


def test_the_noise_of_a_forward_is_no_difference() -> None:
    nothing = Trial({}, 0.95, 1e-8, 0.0, 0.0, (-2e-9, 0.0, 1e-9))
    assert cost_elsewhere(1e-8, [nothing], [MixedCost(1e-8, 5e-8)]) == 1
    assert cost_elsewhere(1e-8, [nothing], [MixedCost(1e-8, 4e-7)]) == pytest.approx(4)


@pytest.mark.parametrize(
    ("cuts", "found"),
    [(CUTS, []), ([], there(2.0, 2.0, 2.0)), (CUTS, [MixedCost(0.0, 0.1)])],
)
def test_without_either_text_nothing_is_said(cuts: list[Trial], found: list[MixedCost]) -> None:
    assert cost_elsewhere(1e-3, cuts, found) == 1
    assert on_all_text(cuts, found) == cuts
