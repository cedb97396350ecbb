"""Bars as inline SVG: they stretch with their cell, and print. The numbers stand beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tenp_edge.pages.markup import Child, tag

_WIDE, _HIGH = 1000.0, 20.0


@dataclass(frozen=True)
class Piece:
    """A stretch of a bar, in its units; ``kind``: its class in the style sheet."""

    size: float
    kind: str
    title: str = ""


Range = tuple[float, float]


def bar(value: float, most: float, kind: str = "p0", spread: Range | None = None) -> Markup:
    """``value`` of ``most`` as a bar, with a whisker from one end of ``spread`` to the other."""
    scale = _WIDE / most if most > 0 else 0.0
    whisker: list[Child] = []
    if spread is not None and spread[1] > spread[0]:
        left, right = max(spread[0], 0.0) * scale, min(spread[1], most) * scale
        whisker = [tag("path", d=f"M{left:.1f} 10H{right:.1f}M{left:.1f} 4V16M{right:.1f} 4V16")]
    length = min(max(value, 0.0) * scale, _WIDE)
    return _strip(
        tag("rect", class_="track", width=_WIDE, y=9.0, height=2.0),
        tag("rect", class_=kind, width=max(length, 2.0), y=2.0, height=16.0),
        *whisker,
    )


def stacked(pieces: Sequence[Piece], most: float, mark: float | None = None) -> Markup:
    """``pieces`` one after the other, of ``most`` in all; ``mark``: a line across."""
    scale, x, drawn = _WIDE / most if most > 0 else 0.0, 0.0, []
    for piece in pieces:
        length = max(piece.size, 0.0) * scale
        if length > 0:
            title = tag("title", piece.title) if piece.title else None
            # A hair of background between two pieces: they are told apart without their colours.
            drawn.append(
                tag(
                    "rect",
                    title,
                    class_=piece.kind,
                    x=x,
                    width=max(length - 2.0, 0.8),
                    height=_HIGH,
                )
            )
        x += length
    line = [] if mark is None else [tag("path", d=f"M{mark * scale:.1f} 0V20", class_="mark")]
    return _strip(*drawn, *line)


def _strip(*shapes: Child) -> Markup:
    return tag(
        "svg",
        *shapes,
        viewBox=f"0 0 {_WIDE:.0f} {_HIGH:.0f}",
        preserveAspectRatio="none",
        class_="strip",
        aria_hidden="true",
        focusable="false",
    )


def swatch(kind: str) -> Markup:
    """A little square of a colour, for legends."""
    shape = tag("rect", class_=kind, width=12.0, height=12.0, rx=2.0)
    return tag("svg", shape, viewBox="0 0 12 12", class_="swatch", aria_hidden="true")
