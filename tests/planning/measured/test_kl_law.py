"""What a predicted loss means in nats, and how sure that is."""

from __future__ import annotations

import math

import pytest

from tenp_edge.checkpoint.plan_record import PlanRecord
from tenp_edge.planning.measured.expected_kl import expected_kl
from tenp_edge.planning.measured.kl_law import is_of_chance, kl_range, loss_of_kl, predicted_kl
from tenp_edge.planning.measured.trials import Trial


def trials(off: float, sequences: tuple[float, ...] = (1.0, 1.0)) -> list[Trial]:
    """Four plans about KL = loss, two of them ``off`` above it in logarithms, two below;
    ``sequences``: the KL of each sequence of the text beside their mean."""
    losses = (0.01, 0.03, 0.1, 0.3)
    kls = [loss * math.exp(off * sign) for loss, sign in zip(losses, (1, -1, -1, 1), strict=True)]
    return [
        Trial({}, 0.5, loss, kl, 0.0, tuple(kl * one for one in sequences))
        for loss, kl in zip(losses, kls, strict=True)
    ]


def test_the_law_goes_both_ways() -> None:
    for measured in ([], trials(0.1)):
        assert loss_of_kl(predicted_kl(0.02, measured), measured) == pytest.approx(0.02)
    assert predicted_kl(0.0) == 0.0 and kl_range(0.0) == (0.0, 0.0)


def test_the_range_without_a_measured_plan() -> None:
    """By the distances of the bundled model's plans, and of an ordinary text; and repair halves."""
    low, high = kl_range(0.02)
    aside = 1.645 * math.sqrt(0.32**2 + 2 * 0.25**2)
    assert high == pytest.approx(predicted_kl(0.02) * math.exp(aside))
    assert low == pytest.approx(predicted_kl(0.02) * math.exp(-aside) / 2)


def test_the_range_is_wider_where_less_is_sure() -> None:
    def factor(loss: float, off: float, sequences: tuple[float, ...] = (1.0, 1.0)) -> float:
        measured = trials(off, sequences)
        return kl_range(loss, measured, measured)[1] / predicted_kl(loss, measured)

    near = factor(0.05, 0.0)
    assert 1.1 < near < factor(0.05, 0.5)  # plans that lie farther from the law
    assert near < factor(0.05, 0.0, (0.5, 1.5))  # sequences that differ
    assert near < factor(0.0005, 0.0)  # far from all that was measured


def test_what_is_said_of_a_plan() -> None:
    cut = PlanRecord(predicted_kl=0.004, predicted_kl_range=(0.002, 0.015), type_kl=0.001)
    found = expected_kl(cut, 0.5)
    assert found is not None and str(found) == "0.0046 (0.0027 to 0.015)"
    assert found.kl == pytest.approx((0.004 ** (1 / 0.84) + 0.001 ** (1 / 0.84)) ** 0.84)
    joint = PlanRecord(type_choice={"bits_per_weight": 4.0, "kl": 0.01, "kl_range": [0.004, 0.02]})
    assert str(expected_kl(joint, 1.0)) == "0.01 (0.004 to 0.02)"
    assert str(expected_kl(PlanRecord(type_kl=0.001), 1.0)) == "0.001"
    assert expected_kl(PlanRecord(), 0.5) is None


def test_cuts_that_cost_by_chance() -> None:
    """The bundled model's, calibrated on 16,384 tokens and on 64; and plans too near each other to
    tell."""

    def trials(*pairs: tuple[float, float]) -> list[Trial]:
        return [Trial({}, 0.7, loss, kl, 1.0) for loss, kl in pairs]

    assert not is_of_chance(trials((1.9e-5, 4.2e-4), (3.9e-4, 3.1e-3), (4.9e-3, 2.5e-2)))
    assert is_of_chance(trials((7e-7, 0.186), (3.2e-5, 0.432), (5.5e-4, 0.869)))
    assert not is_of_chance(trials((1e-5, 0.2), (2e-5, 0.2))) and not is_of_chance(())
