"""The verb export."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from tenp_edge.cli.flags import declared as flags
from tenp_edge.cli.output.screen import Screen
from tenp_edge.cli.report.entries import Entries
from tenp_edge.cli.report.plain_notes import merged
from tenp_edge.errors import UserError
from tenp_edge.units import format_size
from tenp_edge.verbs.options import CalibrationOptions, FileOptions


@flags.expanded()
def export(
    checkpoint: flags.Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The file (ONNX: the directory) to write.")
    ],
    options: FileOptions,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only the exact size.")] = False,
    force: flags.Force = False,
    *,
    screen: Screen,
) -> None:
    """Write a dense or pruned checkpoint as GGUF or ONNX.

    With --calibration, types below Q8_0 are quantised with an importance matrix: what each column
    of each matrix is fed, from the same statistics that plans are made of. --plan takes a plan that
    names its neurons, which tenp-edge plan --calibration WORK -o plan.json writes.

    ONNX --mode static --quant int8 needs the ranges of activations: they are measured on --data (or
    the text in the package) unless compress left them in the --calibration directory.

    Examples:

        tenp-edge export OUT/checkpoint --quant Q8_0 -o model.gguf

        tenp-edge export OUT/checkpoint --quant Q4_K_M --calibration OUT/calibration -o q4.gguf

        tenp-edge export OUT/checkpoint --layout padded --quant F16 -o for-llama-cpp.gguf

        tenp-edge export MODEL --plan plan.json --calibration WORK --quant Q4_K_M -o model.gguf

        tenp-edge export OUT/checkpoint --format onnx --mode portable -o onnx

        tenp-edge export OUT/checkpoint --format onnx --mode static --target qnn -o npu
    """
    from tenp_edge.verbs.export import export_options, run_export

    if output.exists() and not (force or dry_run):
        raise UserError(f"{output} exists", "--force to overwrite it")
    manifest = run_export(
        checkpoint,
        output,
        options.format,
        export_options(options),
        options.plan,
        screen.progress,
        dry_run,
        options.known.statistics,
        CalibrationOptions(**vars(options.text)),
    )
    rows: dict[str, Any] = {
        "format": manifest.format,
        "layout": manifest.layout,
        "quant": manifest.quant,
        "tensors": len(manifest.tensors),
        "bytes": manifest.file_bytes,
        "notes": list(manifest.notes),
    }
    size = f"{format_size(manifest.file_bytes)} ({manifest.file_bytes:,} bytes)"
    what = f"{manifest.layout} {manifest.format}, {manifest.quant}, {len(manifest.tensors)} tensors"
    file = f"{output}{' (not written: --dry-run)' if dry_run else ''}"
    notes = tuple(manifest.notes if screen.verbose else merged(manifest.notes))
    lines = [("file", file), ("size", size), ("holds", what), *(("note", note) for note in notes)]
    next_steps = [("run it", f"tenp-edge run {quote(str(output))}")]
    last = Entries(lines, () if dry_run else next_steps)
    screen.show(rows, last, line=f"{output}: {size}")
