"""The verb doctor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tenp_edge.cli.flags import declared as flags
from tenp_edge.cli.output.screen import Screen
from tenp_edge.cli.report.entries import Entries
from tenp_edge.cli.report.rich_tables import table
from tenp_edge.units import format_size

if TYPE_CHECKING:
    from tenp_edge.verbs.doctor import Diagnosis


@flags.expanded()
def doctor(
    directory: Annotated[
        Path,
        typer.Argument(help="Where models will be written, for the disk.", show_default=False),
    ] = Path(),
    *,
    screen: Screen,
) -> None:
    """What this machine has and lacks, and which well-known models fit it.

    Memory, processor, accelerators, disk, llama.cpp and what is installed, in about two seconds.
    Exit code 1 where something is broken, with what to do about it.

    Examples:

        tenp-edge doctor

        tenp-edge doctor /mnt/models --json
    """
    from tenp_edge.verbs.doctor import run_doctor

    found = run_doctor(directory)
    models = table("", ("model", "what fits of it"), found.models, left=2)
    word = "something is broken" if found.is_broken else "ready"
    size = format_size(found.budget_bytes)
    line = f"{word}; {size} for a model, {len(found.models)} of the well-known ones fit"
    shown = (models,) if found.models else ()
    screen.show(found.to_json(), _entries(found, line), *shown, line=line)
    if found.is_broken:
        raise typer.Exit(1)


def _entries(found: Diagnosis, line: str) -> Entries:
    from tenp_edge.verbs.doctor import BROKEN

    lines: list[tuple[str, str]] = []
    for finding in found.findings:
        lines.append((finding.label, finding.text))
        if finding.remedy:
            lines.append(("BROKEN" if finding.state == BROKEN else "", f"-> {finding.remedy}"))
    commands = (
        ("see it work", "tenp-edge demo"),
        ("what of a model fits", "tenp-edge fit OWNER/NAME"),
    )
    return Entries([*lines, ("verdict", line)], commands)
