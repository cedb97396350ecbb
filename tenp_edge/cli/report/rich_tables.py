"""Small things that every report is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

_BLOCKS = " ▏▎▍▌▋▊▉█"
_BAR_CELLS = 24


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table: first column left, the others right."""
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="right" if index else "left", no_wrap=not index)
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    return drawn


def bar(share: float, cells: int = _BAR_CELLS) -> str:
    """``share`` (0..1) as a bar of ``cells`` characters, in eighths."""
    eighths = round(min(max(share, 0.0), 1.0) * cells * 8)
    full, rest = divmod(eighths, 8)
    partial = _BLOCKS[rest] if rest else ""
    return ("█" * full + partial).ljust(cells, "·")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def facts(title: str, rows: Iterable[tuple[str, object]]) -> Table:
    """Two columns: a name and a value."""
    drawn = table(title, ("", ""), rows)
    drawn.show_header = False
    return drawn
