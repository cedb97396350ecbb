"""The heat map: numbers where they have room, a picture where there are hundreds."""

from __future__ import annotations

import re

from tenp_edge.pages.heat import STEPS, heat_map, step


def test_colours_are_none_all_and_equal_steps_between() -> None:
    assert [step(width, 64) for width in (0, 1, 32, 63, 64)] == [0, 1, 4, 7, STEPS]


def test_few_experts_are_a_table_of_their_widths() -> None:
    drawn = heat_map({3: [0, 32, 64], 5: [64, 64, 16]}, 64)
    assert re.findall(r'<td class="h(\d)">(\d+)</td>', drawn) == [
        *(("0", "0"), ("4", "32"), ("8", "64")),
        *(("8", "64"), ("8", "64"), ("2", "16")),
    ]
    assert drawn.count('scope="row"') == 2 and drawn.count('scope="col"') == 4


def test_many_experts_are_a_picture_with_a_path_a_colour() -> None:
    widths = {layer: [64] * 20 + [32] * 80 for layer in (0, 1)}
    drawn = heat_map(widths, 64)
    assert "<table" not in drawn and drawn.count("<path") == 2 * 2  # for wide screens, for phones
    assert 'd="M0 0H20v1H0zM0 1H20v1H0z" class="h8"' in drawn
    assert "2 layers of 100 experts, 64 neurons each before the cut." in drawn
