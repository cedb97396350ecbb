"""The verbs that prune: demo, calibrate, merge, plan and compress."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tenp_edge.cli.flags import declared as flags
from tenp_edge.cli.hub import spoken
from tenp_edge.cli.output.screen import Screen
from tenp_edge.cli.report import measured_tables, plan_screen, plan_tables
from tenp_edge.disk import require_parent
from tenp_edge.errors import UserError
from tenp_edge.planning.options.settings import listed
from tenp_edge.planning.options.spec import GRADIENT_SCORES, PlanOptions
from tenp_edge.verbs import recipe_files
from tenp_edge.verbs.options import (
    CalibrationOptions,
    CompressOptions,
    ComputeOptions,
    StatisticsOptions,
)


@flags.expanded()
def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the demo writes its files.")
    ] = Path("tenp-edge-demo"),
    force: flags.Force = False,
    *,
    screen: Screen,
) -> None:
    """The whole pipeline on the bundled model, offline, in about a minute.

    Plans for a RAM budget that forces real pruning, calibrates, compresses, writes a GGUF and
    validates it against the uncompressed model.

    Examples:

        tenp-edge demo

        tenp-edge demo -o /tmp/demo --json
    """
    screen.progress.step("demo: a plan for the bundled model")
    from tenp_edge.cli.commands.demo import run_demo

    made = run_demo(output, force, screen.progress)
    last = made.closing
    screen.show(made.to_json(), last.entries, details=made.render(), line=last.line)


@flags.expanded()
def calibrate(
    model: flags.Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Directory for the statistics (WORK).")
    ],
    options: CalibrationOptions,
    gradients: Annotated[
        bool,
        typer.Option(
            "--gradients",
            help=f"A backward pass too, for --set neuron-score={listed(GRADIENT_SCORES)}: about "
            "three more forwards.",
        ),
    ] = False,
    types: flags.Types = False,
    format: flags.TypesFormat = "gguf",
    *,
    screen: Screen,
) -> None:
    """Score experts and neurons on a few samples; one layer in memory at a time.

    The same command continues after a kill. The statistics serve every later plan of this model,
    for any RAM number. `tenp-edge merge` adds up statistics of several runs.

    With --types, what every tensor type does to this model is measured too (errors of sampled rows,
    and the KL of some on text held out): plans then choose widths and types together.

    Examples:

        tenp-edge calibrate MODEL -o WORK

        tenp-edge calibrate MODEL --types -o WORK

        tenp-edge calibrate MODEL --types --format onnx -o WORK

        tenp-edge calibrate MODEL --data code=a.jsonl --data prose=b.txt --samples 64 -o WORK
    """
    from tenp_edge.calibration.coverage import coverage
    from tenp_edge.planning.measured.rounding_errors import FIRST_FORMAT, load_errors
    from tenp_edge.planning.measured.type_costs import load_costs
    from tenp_edge.verbs.calibrate import run_calibrate

    statistics = run_calibrate(model, output, options, screen.progress, gradients, types, format)
    covered, errors = coverage(statistics), load_errors(output, format) if types else None
    costs = load_costs(output) if types and errors is None else None
    known = errors or costs
    shown = covered.to_json() | ({} if known is None else {"types": known.to_json()})
    more = f" --format {format}" if types and format != FIRST_FORMAT else ""
    last = measured_tables.calibration_entries(statistics, covered, output, spoken(model), more)
    details = measured_tables.calibrated(statistics, covered, costs, errors)
    screen.show(shown, last, details=details, line=f"{output}: {measured_tables.seen(covered)}")


@flags.expanded()
def merge(
    statistics: Annotated[list[Path], typer.Argument(help="Two or more statistics directories.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory for the sum.")],
    force: flags.Force = False,
    *,
    screen: Screen,
) -> None:
    """Add up statistics of the same model, domain by domain.

    The same text is not counted twice: statistics of text that both have seen are refused.

    Examples:

        tenp-edge merge WORK1 WORK2 -o WORK
    """
    from tenp_edge.calibration.coverage import coverage
    from tenp_edge.verbs.calibrate import run_merge

    merged = run_merge(statistics, output, force)
    covered = coverage(merged)

    last = measured_tables.calibration_entries(merged, covered, output, "MODEL")
    details = measured_tables.coverage(merged, covered)
    line = f"{output}: {measured_tables.seen(covered)}"
    screen.show(covered.to_json(), last, details=details, line=line)


@flags.expanded(recipes=True)
def plan(
    model: flags.Model,
    options: PlanOptions,
    known: StatisticsOptions,
    compute: ComputeOptions,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write plan.json here.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="What plan always does.", hidden=True)
    ] = False,
    help_set: flags.HelpSet = False,
    *,
    screen: Screen,
) -> None:
    """Decide what stays, and show what the RAM is spent on. Runs the model only with --refine.

    Without --calibration it plans by bytes, in the paper's shape. With it, every expert gets the
    width that its predicted loss is worth, and the plan names the neurons; --refine measures.
    Without a profile the device is this machine's CPU: per-expert GGUF, context 4096. With --ram
    and without --quant it chooses the types too: of every tensor, together with the widths, where
    it was measured what types do to this model (calibrate --types); else one by a rule (to IQ4_XS).

    Examples:

        tenp-edge plan MODEL --ram 8GiB

        tenp-edge plan MODEL --profile laptop-8gb --context 8192

        tenp-edge plan MODEL --keep 0.6 --calibration WORK -o plan.json

        tenp-edge plan MODEL --ram 8GiB --calibration WORK --refine
    """
    from tenp_edge.verbs.plan import run_plan

    if output is not None and not dry_run:
        require_parent(output)
    made = run_plan(model, options, known.statistics, compute, screen.progress)
    if output is not None and not dry_run:
        made.save(output)
        compress_options = CompressOptions(
            statistics=known.statistics, plan=options, calibration=_calibration(compute)
        )
        recipe_files.write_recipe(output.with_suffix(f".{recipe_files.FILE}"), compress_options)
    last = plan_screen.plan_entries(made, model, options, known, output)
    details = plan_tables.plan_report(made)
    screen.show(made.to_json(), last, details=details, line=plan_screen.line(made))


def _calibration(compute: ComputeOptions) -> CalibrationOptions:
    return CalibrationOptions(**vars(compute))


@flags.expanded(recipes=True)
def compress(
    model: flags.Model,
    options: CompressOptions,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only plan, by bytes: what plan does.", hidden=True)
    ] = False,
    *,
    screen: Screen,
) -> None:
    """Calibrate, plan, slice, export and validate: a model that fits, with proof.

    The same command continues after a kill. OUT holds plan.json, plan.safetensors, checkpoint/,
    model.gguf (or onnx/), validation.json, manifest.json and README.md, a model card.
    The last lines say whether it fits, how good it is, where it runs and what to type next. For
    llama.cpp, Ollama or LM Studio: --layout merged.

    Examples:

        tenp-edge compress MODEL --ram 8GiB -o OUT

        tenp-edge compress MODEL --profile laptop-8gb --data chat=prompts.jsonl -o OUT

        tenp-edge compress MODEL --ram 8GiB --layout merged -o OUT

        tenp-edge compress MODEL --ram 8GiB --no-repair -o OUT

        tenp-edge compress MODEL --keep 0.6 --skip-checkpoint --no-validate -o OUT
    """
    from tenp_edge.cli.report.closing import closing
    from tenp_edge.verbs.compress import run_compress
    from tenp_edge.verbs.plan import run_plan
    from tenp_edge.verbs.repair import mend_rules

    output = options.output
    if output is None:
        raise UserError("-o is missing: where the model is to be written", "-o OUT")
    mend_rules(options)
    if dry_run:
        made = run_plan(model, options.plan, options.statistics, options.calibration)
        planned = plan_screen.plan_entries(made, model, options.plan, options, None)
        details = plan_tables.plan_report(made)
        screen.show(made.to_json(), planned, details=details, line=plan_screen.line(made))
        return
    result = run_compress(model, output, options, screen.progress)
    written = result.to_json()
    last = closing(model, output, result.plan, written["validation"])
    details = measured_tables.compressed(result.plan, written["validation"])
    data = written | {"summary": last.to_json()}
    screen.show(data, last.entries, details=details, line=last.line)
