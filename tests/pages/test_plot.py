"""Places on axes, and names that stand on nothing."""

from __future__ import annotations

import re

import pytest

from tenp_edge.pages.plot import Band, Plot, Point, Series, legend, linear_axis, log_axis


def test_axes_have_round_ticks_around_their_values() -> None:
    linear = linear_axis("x", [51.2, 56.9])
    assert [text for _, text in linear.ticks] == ["52", "54", "56"]
    assert 0 < linear.place(51.2) < linear.place(56.9) < 1
    log = log_axis("y", [0.0009, 0.04])
    assert [text for _, text in log.ticks] == ["0.001", "0.003", "0.01", "0.03"]
    ten = [log.place(value) for value in (0.001, 0.01)]
    assert ten[1] - ten[0] == pytest.approx(log.place(0.02) - log.place(0.002))


def test_one_value_and_equal_values_have_axes_too() -> None:
    assert linear_axis("x", [3.0]).place(3.0) == pytest.approx(0.5)
    assert linear_axis("x", [0.0, 0.0]).ticks and log_axis("y", [0.5]).place(0.5) > 0


@pytest.mark.parametrize("values", [[0.005], [0.0051, 0.006], [0.00041, 0.0006], [1.0, 2.0]])
def test_a_short_logarithmic_axis_has_ticks(values: list[float]) -> None:
    assert log_axis("y", values).ticks


def test_both_sizes_are_drawn_and_say_what_they_show() -> None:
    points = [Point(x, 10.0**-x, f"<p{x}>", chosen=x == 2) for x in (1, 2, 3)]
    series = [Series("own", points), Series("others", [Point(2.5, 0.02, "other")], 1, line=False)]
    x, y = linear_axis("size", [1, 2, 3]), log_axis("loss", [0.1, 0.001])
    drawn = Plot(
        "Title", "Three sizes.", x, y, series, [Band(0, 0.01, "low")], (2, "here")
    ).render()
    assert drawn.count("<svg") == 2 and drawn.count('aria-label="Title. Three sizes."') == 2
    assert drawn.count("&lt;p1&gt;") == 2 and "<p1>" not in drawn
    assert drawn.count('class="line s0"') == 2 and "line s1" not in drawn
    for size in re.findall(r"<svg.*?</svg>", drawn):
        assert size.count('class="point s0') == 3 and ">low<" in size and ">here<" in size


def test_a_name_without_room_is_left_out() -> None:
    crowd = [Point(1 + n / 1000, 1, f"name-{n}") for n in range(30)]
    drawn = Plot("t", "d", linear_axis("x", [1, 2]), linear_axis("y", [0, 2]), [Series("s", crowd)])
    assert 2 <= drawn.render().count('class="name') < 20


def test_marks_and_colours_together_tell_twelve_lines_apart() -> None:
    drawn = legend([(f"line {number}", number) for number in range(12)])
    marks = re.findall(r'<path d="([^"]+)" class="point (s\d)"', drawn)
    assert len(set(marks)) == 12
