"""What every page has: its frame, sections, tables, and the folded numbers behind a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from markupsafe import Markup

from tenp_edge.pages.markup import Child, joined, tag
from tenp_edge.version import __version__

_PROJECT = "tenp-edge"
# Nothing but the page itself: no script, no request, whatever a model is called.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


@dataclass(frozen=True)
class Section:
    """``about``: what the reader sees and how to read it, in a sentence or two, beside ``body`` or,
    where that is ``broad``, above it."""

    anchor: str
    title: str
    about: Child
    body: Markup
    broad: bool = False

    def render(self) -> Markup:
        heading = tag("h2", self.title, id=f"{self.anchor}-title")
        aside = tag("div", heading, tag("p", self.about, class_="about"), class_="aside")
        body = tag("div", self.body, class_="body")
        kind = "broad" if self.broad else None
        title = f"{self.anchor}-title"
        return tag("section", aside, body, id=self.anchor, class_=kind, aria_labelledby=title)


def document(title: str, head: Child, sections: Sequence[Section]) -> str:
    """A whole page: ``head`` is what stands above the sections."""
    links = (tag("li", tag("a", one.title, href=f"#{one.anchor}")) for one in sections)
    parts = (
        tag("a", "Skip to the content", href="#content", class_="skip"),
        tag("header", head),
        tag("nav", tag("ul", links), aria_label="Sections"),
        tag("main", (one.render() for one in sections), id="content", tabindex="-1"),
        tag("footer", f"Written by {_PROJECT} {__version__}. This file needs no network."),
    )
    page = tag("html", _head(title), tag("body", parts), lang="en")
    return f"<!doctype html>\n{page}\n"


def _head(title: str) -> Markup:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", title),
        tag("style", Markup(style())),
    )


@cache
def style() -> str:
    """The style sheet of the pages."""
    return (files("tenp_edge.pages") / "page.css").read_text(encoding="utf-8")


def table(
    caption: str,
    columns: Sequence[Child],
    rows: Iterable[Sequence[Child]],
    *,
    words: Iterable[int] = (),
    bars: Iterable[int] = (),
    extra: Iterable[int] = (),
    marked: Iterable[int] = (),
) -> Markup:
    """A table in a box that scrolls by itself where the screen is narrow. The first cell of a row
    is its heading; columns are numbers, on the right, but for those of ``words`` and ``bars``;
    words in ``extra`` are left out on a phone; rows in ``marked`` stand out."""
    kinds = dict.fromkeys(words, "word") | dict.fromkeys(bars, "bar")
    kinds |= dict.fromkeys(extra, "word extra")
    chosen = set(marked)

    def cell(name: str, place: int, content: Child, **more: str) -> Markup:
        return tag(name, content, class_=kinds.get(place, "number" if place else None), **more)

    head = tag("tr", (cell("th", n, c, scope="col") for n, c in enumerate(columns)))
    body = (
        tag(
            "tr",
            (cell("td", n, c) if n else cell("th", n, c, scope="row") for n, c in enumerate(row)),
            class_="marked" if number in chosen else None,
        )
        for number, row in enumerate(rows)
    )
    made = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body))
    return scrolling(caption, made)


def scrolling(label: str, content: Child, kind: str = "") -> Markup:
    """A box of its own width that the keyboard can scroll."""
    return tag(
        "div",
        content,
        class_=f"scroll {kind}".strip(),
        role="region",
        aria_label=label,
        tabindex="0",
    )


def folded(summary: str, content: Child) -> Markup:
    """What most readers need not see, behind a line that opens it."""
    return tag("details", tag("summary", summary), content)


def figure(picture: Markup, caption: Child, numbers: Markup | None = None) -> Markup:
    """A picture, what it shows, and the numbers behind it."""
    folds = None if numbers is None else folded("The numbers", numbers)
    return joined((tag("figure", picture, tag("figcaption", caption)), folds))


def paragraph(*content: Child, kind: str | None = None) -> Markup:
    return tag("p", *content, class_=kind)


def missing(sentence: str) -> Markup:
    """Instead of what a run did not produce."""
    return paragraph(sentence, kind="missing")
