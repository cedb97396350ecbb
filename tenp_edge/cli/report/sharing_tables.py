"""What is told of what others are given."""

from __future__ import annotations

from shlex import quote

from rich.console import RenderableType

from tenp_edge.cli.report import rich_tables
from tenp_edge.cli.report.entries import Entries
from tenp_edge.sharing.uploading import Upload
from tenp_edge.units import format_size
from tenp_edge.verbs.pack import Packed

_BY_RULE = (
    "it was not measured what tensor types cost: plans from this file choose them by a rule. "
    "tenp-edge calibrate MODEL --types -o OUT/calibration, with the same --data, measures it; "
    "then pack again"
)


def uploaded(
    upload: Upload, repository: str, address: str | None
) -> tuple[RenderableType, Entries]:
    """The files that went to ``address``, or would go to ``repository``."""
    rows = [(name, format_size(size)) for name, size in upload.files.items()]
    table = rich_tables.facts("Files", [*rows, ("all", format_size(upload.total_bytes))])
    done = f"to {address}" if address else f"nothing; without --dry-run: to {repository}"
    return table, Entries([("sent", done)])


def packed(made: Packed) -> Entries:
    """The two files, and what to do with them."""
    files = [("file", f"{file}, {format_size(file.stat().st_size)}") for file in made.files]
    if not made.weighs_types:
        files.append(("note", _BY_RULE))
    use = f"tenp-edge compress MODEL --scores {quote(str(made.scores))} --ram 8GiB -o OUT"
    return Entries(files, [("use them", use)])
