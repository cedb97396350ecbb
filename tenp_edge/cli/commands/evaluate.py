"""The verbs that measure: validate and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from tenp_edge.cli.flags import declared as flags
from tenp_edge.cli.output.screen import Screen
from tenp_edge.cli.report import comparison_tables, measured_tables
from tenp_edge.cli.report.entries import Entries
from tenp_edge.disk import require_parent, write_json
from tenp_edge.errors import UserError
from tenp_edge.verbs.compare_options import CompareOptions
from tenp_edge.verbs.options import (
    ComputeOptions,
    LmEvalOptions,
    MeasureOptions,
    ValidateOptions,
)


@flags.expanded()
def compare(
    model: flags.Model,
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            help="Directory for the tables: compare.json, .md, .html and .png, or "
            "matched.json, .md and .html.",
        ),
    ],
    options: CompareOptions,
    *,
    screen: Screen,
) -> None:
    """Methods side by side at equal bytes: KL, perplexity, agreement and questions by domain.

    Every ratio is rounded to what removing whole experts can keep, so that all methods share one
    number of bytes. All pruned models go through a layer while it is loaded: one pass over the
    checkpoint for each ratio, whatever the number of methods. The same command continues after a
    kill.

    --matched compares files of equal size: the whole model in the best type that fits, one type
    with pruning, experts removed, and plans that choose widths and types together.

    Examples:

        tenp-edge compare MODEL -o OUT

        tenp-edge compare MODEL --matched --budget IQ4_XS --budget Q2_K -o OUT

        tenp-edge compare MODEL --method short --keep 0.6 --seeds 1 -o OUT

        tenp-edge compare MODEL --data code=a.jsonl --eval-data code=b.jsonl --method all -o OUT
    """
    compared = _matched if options.matched else _by_share
    result, *shown = compared(model, output, options, screen)
    screen.show(result, *shown, line=f"{output}: the tables")


def _by_share(
    model: Path, output: Path, options: CompareOptions, screen: Screen
) -> tuple[dict[str, Any], RenderableType, Entries]:
    from tenp_edge.evaluation.comparison.table import lines, predictions
    from tenp_edge.verbs.compare import run_compare

    result = run_compare(model, output, options, screen.progress)
    made = lines(result)
    shown = comparison_tables.comparison(made, predictions(result))
    return result, shown, comparison_tables.legend(made, output)


def _matched(
    model: Path, output: Path, options: CompareOptions, screen: Screen
) -> tuple[dict[str, Any], RenderableType, Entries]:
    from tenp_edge.evaluation.matched.table import sections
    from tenp_edge.verbs.compare_matched import run_compare_matched

    result = run_compare_matched(model, output, options, screen.progress)
    shown = comparison_tables.matched(sections(result))
    return result, shown, comparison_tables.matched_legend(output)


@flags.expanded()
def validate(
    reference: flags.Model,
    candidate: Annotated[
        Path | None, typer.Argument(help="A GGUF file, an ONNX directory, a checkpoint, or OUT.")
    ] = None,
    *,
    options: ValidateOptions,
    compute: ComputeOptions,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="The plan.json that the file was pruned by."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="The pruned checkpoint that the file was made from."),
    ] = None,
    measured: MeasureOptions,
    tasks: LmEvalOptions,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the report here (JSON).")
    ] = None,
    screen: Screen,
) -> None:
    """KL divergence, agreement and perplexity of CANDIDATE against REFERENCE, by domain.

    The reference runs layer by layer, so it may be bigger than the RAM. A GGUF runs in its own
    runtime: merged and padded ones in unmodified llama.cpp, per-expert ones in ours, or with
    --twin in unmodified llama.cpp too, with zeros where neurons were cut. Its peak memory is
    predicted and measured in a process of its own, for the run that it was planned for, or that
    --context, --kv-type and --ubatch describe.

    With --lm-eval, tasks of lm-eval run instead: on both checkpoints, whole in memory, or on what a
    running `tenp-edge serve` serves (--url; an API key is taken from OPENAI_API_KEY).

    A GGUF's loss is split into what pruning does (the pruned model, unquantised), quantisation
    (the weights that the file holds) and the runtime (the file as it runs). The first needs the
    pruned model: the checkpoint or plan.json beside the file, or --checkpoint or --plan.

    Examples:

        tenp-edge validate MODEL OUT

        tenp-edge validate MODEL OUT/model.gguf --twin

        tenp-edge validate MODEL elsewhere.gguf --plan OUT/plan.json

        tenp-edge validate MODEL OUT/checkpoint --data chat=prompts.jsonl --samples 16

        tenp-edge validate MODEL OUT/checkpoint --lm-eval arc_easy --lm-eval gsm8k

        tenp-edge validate MODEL --lm-eval arc_easy --url http://127.0.0.1:8080
    """
    if output is not None:
        require_parent(output)
    if tasks.lm_eval:
        from tenp_edge.verbs.lm_eval import run_lm_eval

        scores = run_lm_eval(reference, candidate, tasks, compute)
        _written(output, scores)
        screen.show(scores, measured_tables.tasks(scores), line=str(output or "done"))
        return
    if candidate is None:
        raise UserError("CANDIDATE is missing: what MODEL is compared with", "OUT, behind MODEL")
    screen.progress.step(f"validating {candidate.name} against {reference.name}")
    from tenp_edge.checkpoint.provenance import PrunedBy
    from tenp_edge.evaluation.verdict import judge
    from tenp_edge.verbs.validate import run_validate

    pruned_by = PrunedBy(checkpoint, plan)
    report = run_validate(
        reference, candidate, options, compute, screen.progress, pruned_by, measured
    ).to_json()
    verdict = judge(report["overall"], report["domains"])
    report |= {"verdict": verdict.to_json()}
    _written(output, report)
    last = measured_tables.validation_entries(report, verdict)
    parts = [measured_tables.validated(report)] if screen.verbose else []
    screen.show(report, *parts, measured_tables.by_kind(report), last, line=str(verdict))


def _written(output: Path | None, data: dict[str, Any]) -> None:
    if output is not None:
        write_json(output, data)
