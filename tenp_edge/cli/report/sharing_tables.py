"""What is told of what others are given."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from tenp_edge.cli.report import rich_tables
from tenp_edge.sharing.uploading import Upload
from tenp_edge.units import format_size
from tenp_edge.verbs.pack import Packed


def uploaded(upload: Upload, repository: str, address: str | None) -> RenderableType:
    """The files that went to ``address``, or would go to ``repository``."""
    rows = [(name, format_size(size)) for name, size in upload.files.items()]
    table = rich_tables.facts("Files", [*rows, ("all", format_size(upload.total_bytes))])
    done = f"sent to {address}" if address else f"nothing was sent; without --dry-run: {repository}"
    return Group(table, Text(done))


def packed(made: Packed) -> RenderableType:
    """The two files, and what to do with them."""
    files = (made.scores, made.recipe)
    rows = [(str(file), format_size(file.stat().st_size)) for file in files]
    use = f"tenp-edge compress MODEL --scores {made.scores} --ram 8GiB -o OUT"
    return Group(rich_tables.facts("Packed", rows), Text(f"next      {use}"))
