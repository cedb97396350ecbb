"""The verb `compare`; `cli` registers it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tenp_edge import flags
from tenp_edge.options import CalibrationOptions, CompareOptions, HeldOutOptions
from tenp_edge.terminal import TerminalProgress

_COMPARE = "Comparison"


@flags.expanded()
def compare(
    model: flags.Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Directory for compare.json, .md and .png.")
    ],
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            help="A method, a pattern such as 'drop-*', or a set: short, table, claims, uniform, "
            "mended or all; repeat for more. Default: table.",
            rich_help_panel=_COMPARE,
        ),
    ] = None,
    ratios: Annotated[
        list[float] | None,
        typer.Option(
            "--keep",
            help="Share of the routed-expert parameters kept; repeat for more. "
            "Default: 0.9, 0.75, 0.6, 0.45 and 0.3.",
            rich_help_panel=_COMPARE,
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds", help="Calibrations, each with its own sample.", rich_help_panel=_COMPARE
        ),
    ] = 3,
    width_multiple: Annotated[
        int,
        typer.Option(
            "--width-multiple",
            help="Cut widths are multiples of this; 1 makes every method's bytes equal.",
            rich_help_panel=_COMPARE,
        ),
    ] = 1,
    questions: Annotated[
        int,
        typer.Option(
            "--questions",
            help="Cloze questions and worked sums per domain; 0 leaves them out.",
            rich_help_panel=_COMPARE,
        ),
    ] = 16,
    lm_eval: Annotated[
        list[str] | None,
        typer.Option(
            "--lm-eval",
            help="A task of lm-eval (needs tenp-edge[lm-eval] and the task's data), run with every "
            "method; repeat for more.",
            rich_help_panel=_COMPARE,
        ),
    ] = None,
    lm_eval_limit: Annotated[
        int | None,
        typer.Option(
            "--lm-eval-limit", help="Items of each lm-eval task.", rich_help_panel=_COMPARE
        ),
    ] = None,
    *,
    calibration: CalibrationOptions,
    held_out: HeldOutOptions,
    json_output: flags.Json = False,
) -> None:
    """Methods side by side at equal bytes: KL, perplexity, agreement and questions by domain.

    Every ratio is rounded to what removing whole experts can keep, so that all methods share one
    number of bytes. All pruned models go through a layer while it is loaded: one pass over the
    checkpoint for each ratio, whatever the number of methods. The same command continues after a
    kill.

    Examples:

        tenp-edge compare MODEL -o OUT

        tenp-edge compare MODEL --method short --keep 0.6 --seeds 1 -o OUT

        tenp-edge compare MODEL --data code=a.jsonl --eval-data code=b.jsonl --method all -o OUT
    """
    from tenp_edge import report
    from tenp_edge.compare.table import lines, predictions
    from tenp_edge.comparison import run_compare

    defaults = CompareOptions()
    options = CompareOptions(
        calibration=calibration,
        validation=held_out,
        ratios=tuple(ratios or defaults.ratios),
        methods=tuple(methods or defaults.methods),
        seeds=seeds,
        width_multiple=width_multiple,
        questions=questions,
        lm_eval=tuple(lm_eval or ()),
        lm_eval_limit=lm_eval_limit,
    )
    result = run_compare(model, output, options, TerminalProgress(Console(stderr=True)))
    if json_output:
        print(json.dumps(result, indent=1))
    else:
        # In a pipe or a log there is no terminal width to respect, and the table is wide.
        width = None if sys.stdout.isatty() else 160
        Console(width=width).print(report.comparison(lines(result), predictions(result)))
