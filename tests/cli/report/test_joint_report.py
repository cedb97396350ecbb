"""What a plan with types of its own says that the RAM buys."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from tenp_edge.cli.report.joint_report import frontier_plot, what_it_buys
from tenp_edge.evaluation.verdict import expected

MIB = 2**20
WHOLE = {"quant": "Q2_K", "bits_per_weight": 2.6, "predicted_kl": 0.07}


def choice(**changes: Any) -> dict[str, Any]:
    row = {"bits_per_weight": 4.25, "kl": 0.02, "types": {"IQ4_XS": 0.8, "Q5_K": 0.2}}
    return {**row, "whole": WHOLE, **changes}


def test_a_sentence_of_the_plan_and_one_of_the_whole_model() -> None:
    assert what_it_buys(choice(), 0.74, 50 * MIB) == (
        "50.00 MiB buy the experts pruned to 74.0 %, mostly IQ4_XS (4.2 bits a weight); expected "
        "difference: small (KL about 0.02). The whole model at this size would be Q2_K (2.6 bits); "
        "expected difference: noticeable (KL about 0.07)"
    )


def test_without_a_whole_model_that_fits() -> None:
    said = what_it_buys(choice(whole=None, types={"A": 0.4, "B": 0.35, "C": 0.25}), 0.5, MIB)
    assert "pruned to 50.0 %, mostly A and B (" in said
    assert said.endswith(". The whole model does not fit in any type")


def test_a_whole_model() -> None:
    said = what_it_buys(choice(types={"Q8_0": 1.0}, bits_per_weight=8.5, kl=0.0001), 1.0, MIB)
    assert said == (
        "1.00 MiB buy the experts whole, all Q8_0 (8.5 bits a weight); expected difference: almost "
        "no (KL about 0.0001)"
    )


@pytest.mark.parametrize(
    ("kl", "word"),
    [
        (0.0, "almost no"),
        (0.03, "small"),
        (0.1, "noticeable"),
        (2, "large"),
        (float("nan"), "large"),
    ],
)
def test_words_are_those_of_the_verdict(kl: float, word: str) -> None:
    assert expected(kl) == word


def test_the_plot_is_longer_where_more_is_lost() -> None:
    points = [
        {
            "total_bytes": size * MIB,
            "keep_ratio": 0.5,
            "bits_per_weight": 4.0,
            "predicted_kl": kl,
            "chosen": size == 50,
        }
        for size, kl in ((60, 0.0), (50, 0.01), (40, 0.1))
    ]
    console = Console(width=120, record=True)
    with console.capture() as shown:
        console.print(frontier_plot(points))
    lines = [line for line in shown.get().splitlines() if "MiB" in line]
    assert [line.count("█") for line in lines] == sorted(line.count("█") for line in lines)
    assert ["<- chosen" in line for line in lines] == [False, True, False]
