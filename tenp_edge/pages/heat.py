"""Widths by layer and expert as a heat map: a table of coloured numbers where it has room for them,
a picture where there are hundreds of experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from markupsafe import Markup

from tenp_edge.pages.document import scrolling
from tenp_edge.pages.markup import joined, tag

STEPS = 8
_MOST_NUMBERS = 24  # experts whose widths can be written side by side
_LEFT, _TOP = 34.0, 6.0
# Width of the picture on a wide screen and on a phone, where shrunk letters cannot be read, and how
# many numbers of experts stand below it. Few layers are drawn higher, up to _HIGHEST.
_SIZES = {"wide": (760.0, 8), "narrow": (340.0, 4)}
_LOWEST, _HIGHEST = 6.0, 22.0
_ALL_LAYERS = 240.0

Widths = Mapping[int, Sequence[int]]


def heat_map(widths: Widths, full: int) -> Markup:
    """``widths``: layer -> kept width of each expert, of ``full``."""
    most = max(len(row) for row in widths.values())
    if most <= _MOST_NUMBERS:
        drawn = _numbers(widths, full)
    else:
        drawn = joined(_picture(widths, full, kind) for kind in _SIZES)
    return joined((drawn, _legend(full)))


def step(width: int, full: int) -> int:
    """The colour of a width: 0 for none, STEPS for all of it."""
    if width <= 0:
        return 0
    return STEPS if width >= full else 1 + int((STEPS - 1) * width / full)


def _numbers(widths: Widths, full: int) -> Markup:
    count = max(len(row) for row in widths.values())
    head = tag("tr", tag("th", "layer", scope="col"), (_number(e) for e in range(count)))
    body = (
        tag(
            "tr",
            tag("th", layer, scope="row"),
            (tag("td", width, class_=f"h{step(width, full)}") for width in row),
        )
        for layer, row in sorted(widths.items())
    )
    caption = tag("caption", f"Neurons kept of {full}, by layer (rows) and expert (columns)")
    made = tag("table", caption, tag("thead", head), tag("tbody", body), class_="heat")
    return scrolling("Widths by layer and expert", made)


def _number(expert: int) -> Markup:
    return tag("th", expert, scope="col")


def _picture(widths: Widths, full: int, kind: str) -> Markup:
    """A cell an expert; runs of one colour are one shape, all shapes of a colour one path."""
    layers = sorted(widths)
    most = max(len(widths[layer]) for layer in layers)
    room, marks = _SIZES[kind]
    across = room - _LEFT
    high = min(max(across / most, _ALL_LAYERS / len(layers), _LOWEST), _HIGHEST)
    height = _TOP + high * len(layers) + 26
    by_colour: dict[int, list[str]] = {}
    for number, layer in enumerate(layers):
        for colour, start, stop in _runs(widths[layer], full):
            by_colour.setdefault(colour, []).append(f"M{start} {number}H{stop}v1H{start}z")
    cells = (
        tag("path", d="".join(by_colour[colour]), class_=f"h{colour}")
        for colour in sorted(by_colour)
    )
    scale = f"translate({_LEFT} {_TOP}) scale({across / most:.4f} {high:.3f})"
    text = f"{len(layers)} layers of {most} experts, {full} neurons each before the cut."
    return tag(
        "svg",
        tag("title", "Neurons kept, by layer and expert"),
        tag("desc", text),
        tag("g", cells, transform=scale, class_="cells"),
        _scale(layers, high, _marked(most, marks), across / most, height),
        viewBox=f"0 0 {room:.0f} {height:.0f}",
        class_=f"map {kind}",
        role="img",
        aria_label=f"Neurons kept, by layer and expert: {text}",
    )


def _runs(row: Sequence[int], full: int) -> Iterator[tuple[int, int, int]]:
    """(colour, first expert, one past the last) of experts side by side."""
    start = 0
    for colour, members in groupby(row, lambda width: step(width, full)):
        stop = start + len(list(members))
        yield colour, start, stop
        start = stop


def _scale(
    layers: Sequence[int], high: float, marked: Sequence[int], wide: float, height: float
) -> Iterator[Markup]:
    every = max(1, round(16 / high))
    for number, layer in enumerate(layers):
        if number % every == 0:
            y = _TOP + high * (number + 0.5) + 4
            yield tag("text", layer, x=_LEFT - 6, y=y, text_anchor="end")
    for expert in marked:
        x = _LEFT + wide * (expert + 0.5)
        yield tag("text", expert, x=x, y=height - 8, text_anchor="middle")


def _marked(most: int, marks: int) -> range:
    """The experts whose numbers are written."""
    return range(0, most, max(1, round(most / marks)))


def _legend(full: int) -> Markup:
    """What the colours mean, as numbers."""
    entries = []
    for number in range(STEPS + 1):
        low, high = ((number - 1) / (STEPS - 1), number / (STEPS - 1))
        between = f"{max(_width(low, full), 1)}-{_width(high, full)}"
        text = {0: "none", STEPS: "all"}.get(number, between)
        entries.append(tag("li", tag("span", text, class_=f"h{number}")))
    return tag("ul", entries, class_="ramp", aria_label="Colours: neurons kept")


def _width(share: float, full: int) -> int:
    return round(share * full)
