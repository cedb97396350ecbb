"""The verb that writes a page of what is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tenp_edge.cli.flags import declared as flags
from tenp_edge.cli.output.screen import Screen
from tenp_edge.cli.report.entries import Entries


@flags.expanded()
def report(
    output: Annotated[Path, typer.Argument(help="OUT: the directory that compress wrote.")],
    *,
    screen: Screen,
) -> None:
    """Write OUT/report.html again, from the files that compress left in OUT.

    One page that needs no network: the verdict, what the memory is spent on, widths, types, losses,
    the routing before and after, where the two models disagree most, other sizes, and how to make
    the file again. compress writes it; nothing is measured here.

    Examples:

        tenp-edge report OUT
    """
    from tenp_edge.pages.report import write_report

    written = write_report(output)
    path = str(written)
    screen.show({"report": path}, Entries([("page", path)]), line=path)
