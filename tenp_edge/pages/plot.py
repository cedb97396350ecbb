"""Points and lines over two axes, as inline SVG without a script.

A picture is drawn twice, for wide screens and for phones: shrunk letters cannot be read. The style
sheet shows one of them. Lines are told apart by their marks and the names at their ends, not by
colour alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from tenp_edge.pages.markup import Child, joined, tag

_SIZES = {"wide": (760.0, 400.0), "narrow": (340.0, 360.0)}
_LETTER = 6.6  # the mean width of one, at 12 pixels
_LINE = 15.0
_STEP = 6.0  # along a line, between the places that are kept free
# Where a point's name may stand: right, left, above, below.
_BESIDE = ((9.0, 4.0, "start"), (-9.0, 4.0, "end"), (0.0, -11.0, "middle"), (0.0, 19.0, "middle"))
_BEFORE = {"start": 0.0, "middle": 0.5, "end": 1.0}  # of a name, that share lies left of its place
_MARKS = ("circle", "square", "diamond", "triangle", "down", "cross")


@dataclass(frozen=True)
class Axis:
    """``ticks``: the values with a line, and what stands there."""

    label: str
    low: float
    high: float
    ticks: Sequence[tuple[float, str]]
    log: bool = False

    def place(self, value: float) -> float:
        """Where ``value`` lies, 0 at the low end and 1 at the high one."""
        low, high = (self._scaled(end) for end in (self.low, self.high))
        return (self._scaled(value) - low) / (high - low) if high > low else 0.5

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-12)) if self.log else value


@dataclass(frozen=True)
class Point:
    """``label``: what stands beside it, if there is room; ``title``: what the pointer shows."""

    x: float
    y: float
    label: str = ""
    title: str = ""
    chosen: bool = False


@dataclass(frozen=True)
class Series:
    """``number``: its colour and its mark; ``line``: whether its points are joined; ``named``:
    whether its name stands at its right end, where the screen is wide enough."""

    name: str
    points: Sequence[Point]
    number: int = 0
    line: bool = True
    named: bool = False


@dataclass(frozen=True)
class Band:
    """A stretch of the upright axis that has a name."""

    low: float
    high: float
    name: str


@dataclass(frozen=True)
class Plot:
    """``description``: for those who cannot see it; ``rule``: a value of x with a line."""

    title: str
    description: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    bands: Sequence[Band] = ()
    rule: tuple[float, str] | None = None

    def render(self) -> Markup:
        """Both sizes."""
        return joined(_Drawing(self, kind, *size).render() for kind, size in _SIZES.items())


def linear_axis(label: str, values: Sequence[float], write: str = "{:g}") -> Axis:
    """An axis around ``values`` with about five round ticks."""
    low, high = min(values), max(values)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    low, high = low - room, high + room
    step = _round_step((high - low) / 5)
    first = math.ceil(low / step)
    ticks = [n * step for n in range(first, math.floor(high / step) + 1)]
    return Axis(label, low, high, [(tick, write.format(tick)) for tick in ticks])


def log_axis(label: str, values: Sequence[float]) -> Axis:
    """An axis of powers of ten around ``values``, which are above zero."""
    low, high = min(values) / 1.5, max(values) * 1.5
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps: Sequence[int] = (1, 3) if math.log10(high / low) < 4 else (1,)
    if high / low < 10:  # between two of those the axis would have none
        steps = range(1, 10)
    ticks = [step * 10.0**decade for decade in decades for step in steps]
    inside = [tick for tick in ticks if low <= tick <= high]
    return Axis(label, low, high, [(tick, _plain(tick)) for tick in inside], True)


def _plain(value: float) -> str:
    return f"{value:.10f}".rstrip("0").rstrip(".")


def _round_step(rough: float) -> float:
    scale = 10.0 ** math.floor(math.log10(rough))
    return next(step * scale for step in (1, 2, 2.5, 5, 10) if step * scale >= rough)


_Box = tuple[float, float, float, float]  # left, top, right, bottom


class _Drawing:
    """One size of a plot."""

    def __init__(self, plot: Plot, kind: str, width: float, height: float) -> None:
        self.plot, self.kind, self.width, self.height = plot, kind, width, height
        self.left = 14 + _LETTER * max((len(text) for _, text in plot.y.ticks), default=4)
        self.named = [one for one in plot.series if one.named and kind == "wide"]
        names = max((len(one.name) for one in self.named), default=-1)
        self.right, self.top, self.bottom = width - 12 - _LETTER * (names + 1), 30.0, height - 46
        self._taken: list[_Box] = []
        self._names: list[Markup] = []  # of bands: over the lines that cross them

    def render(self) -> Markup:
        plot = self.plot
        for one in plot.series:
            self._taken.extend(self._covered(one))
        parts = (
            tag("title", plot.title),
            tag("desc", plot.description),
            self._bands(),
            self._axes(),
            self._rule(),
            (self._series(one) for one in plot.series),
            self._names,
            (self._labels(one) for one in plot.series),
            self._ends(),
        )
        return tag(
            "svg",
            *parts,
            viewBox=f"0 0 {self.width:.0f} {self.height:.0f}",
            class_=f"plot {self.kind}",
            role="img",
            aria_label=f"{plot.title}. {plot.description}",
        )

    # -- places --------------------------------------------------------------------------------

    def _x(self, value: float) -> float:
        return self.left + self.plot.x.place(value) * (self.right - self.left)

    def _y(self, value: float) -> float:
        return self.bottom - self.plot.y.place(value) * (self.bottom - self.top)

    def _at(self, point: Point) -> tuple[float, float]:
        return self._x(point.x), self._y(point.y)

    def _covered(self, one: Series) -> Iterator[_Box]:
        """Where nothing may be written: on points, and on the line through them."""
        places = [self._at(point) for point in one.points]
        for x, y in places:
            yield x - 5, y - 5, x + 5, y + 5
        for start, stop in pairwise(places) if one.line else ():
            steps = max(1, round(math.dist(start, stop) / _STEP))
            for step in range(1, steps):
                x, y = (a + (b - a) * step / steps for a, b in zip(start, stop, strict=True))
                yield x - 2, y - 2, x + 2, y + 2

    # -- parts ---------------------------------------------------------------------------------

    def _bands(self) -> Iterator[Markup]:
        for number, band in enumerate(self.plot.bands):
            top = max(self._y(min(band.high, self.plot.y.high)), self.top)
            bottom = min(self._y(max(band.low, self.plot.y.low)), self.bottom)
            if bottom - top < 1:
                continue
            yield tag(
                "rect",
                x=self.left,
                y=top,
                width=self.right - self.left,
                height=bottom - top,
                class_=f"band{number % 2}",
            )
            if bottom - top > _LINE:
                x = self._before_rule(_LETTER * len(band.name))
                name = tag("text", band.name, x=x, y=top + 13, class_="band", text_anchor="end")
                self._names.append(name)
                self._taken.append((x - _LETTER * len(band.name), top, x, top + _LINE))

    def _before_rule(self, width: float) -> float:
        """Where a name of ``width`` ends: at the right, or before the rule that would cross it."""
        end = self.right - 6
        rule = math.inf if self.plot.rule is None else self._x(self.plot.rule[0])
        return rule - 6 if end - width - 6 < rule < end + 6 else end

    def _axes(self) -> Iterator[Markup]:
        plot = self.plot
        for value, text in plot.y.ticks:
            y = self._y(value)
            yield tag("path", d=f"M{self.left:.1f} {y:.1f}H{self.right:.1f}", class_="grid")
            yield tag("text", text, x=self.left - 7, y=y + 4, text_anchor="end")
        last = -math.inf
        for value, text in plot.x.ticks:
            x, half = self._x(value), _LETTER * len(text) / 2
            if x - half > last + 6 and x + half < self.width:
                yield tag("text", text, x=x, y=self.bottom + 18, text_anchor="middle")
                last = x + half
            yield tag("path", d=f"M{x:.1f} {self.bottom:.1f}v4", class_="axis")
        d = f"M{self.left:.1f} {self.bottom:.1f}H{self.right:.1f}"
        yield tag("path", d=d, class_="axis")
        yield tag("text", plot.y.label, x=0.0, y=14.0, class_="label")
        yield tag(
            "text",
            plot.x.label,
            x=self.right,
            y=self.height - 6,
            class_="label",
            text_anchor="end",
        )

    def _rule(self) -> Iterator[Markup]:
        if self.plot.rule is None:
            return
        value, text = self.plot.rule
        x = self._x(value)
        yield tag("path", d=f"M{x:.1f} {self.top:.1f}V{self.bottom:.1f}", class_="rule")
        width = _LETTER * len(text)
        before = x + 6 + width > self.right
        yield tag(
            "text",
            text,
            x=x - 6 if before else x + 6,
            y=self.bottom - 8,
            class_="rule",
            text_anchor="end" if before else None,
        )
        left = x - 6 - width if before else x
        self._taken.append((left, self.bottom - 20, left + width + 6, self.bottom - 4))

    def _series(self, one: Series) -> Iterator[Markup]:
        colour = f"s{_colour(one.number)}"
        places = [self._at(point) for point in one.points]
        if one.line and len(places) > 1:
            d = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            yield tag("path", d=d, class_=f"line {colour}")
        for point, (x, y) in zip(one.points, places, strict=True):
            size = 6.5 if point.chosen else 4.0
            d = _mark(_MARKS[one.number % len(_MARKS)], x, y, size)
            title = tag("title", point.title) if point.title else None
            kind = f"point {colour}{' chosen' if point.chosen else ''}"
            yield tag("path", title, d=d, class_=kind)

    def _labels(self, one: Series) -> Iterator[Markup]:
        named = [point for point in one.points if point.label]
        for point in sorted(named, key=lambda point: not point.chosen):
            yield from self._label(point)

    def _ends(self) -> Iterator[Markup]:
        """The names of lines beside their right ends, as far down as those above them need."""
        ends = sorted(
            ((self._y(one.points[-1].y), one) for one in self.named if one.points),
            key=lambda end: end[0],
        )
        last = self.top - _LINE
        for place, (y, one) in enumerate(ends):
            room = self.bottom - (len(ends) - 1 - place) * _LINE
            last = max(last + _LINE, min(y, room))
            yield tag("text", one.name, x=self.right + _LETTER, y=last + 4, class_="name")

    def _label(self, point: Point) -> Iterator[Markup]:
        """Where there is room around it: right, left, above, below; else nowhere."""
        x, y = self._at(point)
        width = _LETTER * len(point.label)
        for dx, dy, anchor in _BESIDE:
            left = x + dx - width * _BEFORE[anchor]
            box = (left, y + dy - 11, left + width, y + dy + 3)
            inside = box[0] >= self.left and box[2] <= self.right and box[1] >= self.top - 8
            if inside and box[3] < self.bottom and not any(_meet(box, o) for o in self._taken):
                self._taken.append(box)
                kind = "name chosen" if point.chosen else "name"
                at = x + dx, y + dy
                yield tag("text", point.label, x=at[0], y=at[1], class_=kind, text_anchor=anchor)
                return


def _colour(number: int) -> int:
    """Marks and colours come round after six; together they do after 36."""
    return (number + number // len(_MARKS)) % len(_MARKS)


def _meet(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _mark(kind: str, x: float, y: float, r: float) -> str:
    """The outline of a mark of ``r`` around a place."""
    if kind == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0"
    corners = {
        "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
        "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
        "triangle": ((0, -1.25), (1.15, 0.9), (-1.15, 0.9)),
        "down": ((0, 1.25), (1.15, -0.9), (-1.15, -0.9)),
        "cross": ((-1, -1), (0, -0.35), (1, -1), (0.35, 0), (1, 1), (0, 0.35), (-1, 1), (-0.35, 0)),
    }[kind]
    return "M" + "L".join(f"{x + r * dx:.1f} {y + r * dy:.1f}" for dx, dy in corners) + "Z"


def legend(names: Sequence[tuple[str, int]]) -> Markup:
    """The marks of a plot, each with its name."""

    def entry(name: str, number: int) -> Child:
        mark = tag(
            "path",
            d=_mark(_MARKS[number % len(_MARKS)], 8.0, 8.0, 4.5),
            class_=f"point s{_colour(number)}",
        )
        drawn = tag("svg", mark, viewBox="0 0 16 16", class_="swatch", aria_hidden="true")
        return tag("li", drawn, name)

    return tag("ul", (entry(*one) for one in names), class_="legend")
