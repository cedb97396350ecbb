"""Small things that every report is made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_BLOCKS = " ▏▎▍▌▋▊▉█"
_BAR_CELLS = 24
_FOLD = 4  # blanks before what stands below a row's first cell


class Folding(Table):
    """A table that is as wide as its cells; where the screen is narrower, each row becomes its
    first cell, and below it every heading with its value."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.update(width=10_000, min_width=0, max_width=10_000)
        needed = self.__rich_measure__(console, wide).maximum
        if needed <= options.max_width or len(self.columns) < 2:
            yield from super().__rich_console__(console, options)
            return
        yield from self._folded()

    def _folded(self) -> Iterable[RenderableType]:
        if self.title:
            yield Text(str(self.title), style="bold")
        headings = [str(column.header) if self.show_header else "" for column in self.columns]
        for row in zip(*(list(column.cells) for column in self.columns), strict=True):
            first, *others = (str(cell) for cell in row)
            pairs = zip(headings[1:], others, strict=True)
            said = [f"{name}: {cell}" if name else cell for name, cell in pairs if cell.strip()]
            yield Text(first)
            if said:
                yield Padding(Text("; ".join(said)), (0, 0, 0, _FOLD))
        yield Text("")


def table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1
) -> Table:
    """A plain table: the first ``left`` columns left, the others right."""
    drawn = Folding(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="left" if index < left else "right", no_wrap=not index)
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    return drawn


def bar(share: float, cells: int = _BAR_CELLS) -> str:
    """``share`` (0..1) as a bar of ``cells`` characters, in eighths."""
    eighths = round(min(max(share, 0.0), 1.0) * cells * 8)
    full, rest = divmod(eighths, 8)
    partial = _BLOCKS[rest] if rest else ""
    return ("█" * full + partial).ljust(cells, "·")


def facts(title: str, rows: Iterable[tuple[str, object]]) -> Table:
    """Two columns: a name and a value, both from the left."""
    drawn = table(title, ("", ""), rows, left=2)
    drawn.show_header = False
    return drawn
