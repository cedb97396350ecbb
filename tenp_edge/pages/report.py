"""OUT/report.html: one self-contained page about a run, made from the files that the run left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tenp_edge.disk import write_json, write_text
from tenp_edge.pages import run_layers, run_losses, run_origin, run_spending
from tenp_edge.pages.document import Section, document
from tenp_edge.pages.run_files import RunFiles, read_run
from tenp_edge.pages.run_head import head

FILE, ENVIRONMENT = "report.html", "environment.json"


def write_report(directory: Path, environment: Mapping[str, Any] | None = None) -> Path:
    """Write the report of the run in ``directory`` there, and say where. ``environment``: what the
    run was made with, kept beside it; None leaves what is known of it as it is.

    Raises UserError where ``directory`` holds no run.
    """
    if environment is not None:
        write_json(directory / ENVIRONMENT, environment)
    target = directory / FILE
    write_text(target, report(read_run(directory)))
    return target


def report(run: RunFiles) -> str:
    """The page."""
    return document(f"{run.model}: tenp-edge report", head(run), list(_sections(run)))


def _sections(run: RunFiles) -> Iterator[Section]:
    yield run_spending.memory(run)
    yield run_losses.losses(run)
    yield run_losses.examples(run)
    yield run_layers.widths(run)
    yield run_layers.types(run)
    yield run_losses.routing(run)
    yield run_spending.predictions(run)
    yield run_spending.frontier(run)
    yield run_origin.recipe(run)
    yield run_origin.environment(run)
