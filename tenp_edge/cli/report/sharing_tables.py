"""What is told of what others are given."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from tenp_edge.cli.report import rich_tables
from tenp_edge.sharing.uploading import Upload
from tenp_edge.units import format_size


def uploaded(upload: Upload, repository: str, address: str | None) -> RenderableType:
    """The files that went to ``address``, or would go to ``repository``."""
    rows = [(name, format_size(size)) for name, size in upload.files.items()]
    table = rich_tables.facts("Files", [*rows, ("all", format_size(upload.total_bytes))])
    done = f"sent to {address}" if address else f"nothing was sent; without --dry-run: {repository}"
    return Group(table, Text(done))
