"""The verbs. The only place that prints errors or decides the exit code.

stdout is the result, stderr is progress. A UserError is two lines and exit 2, and so is what the
operating system refuses; anything else that escapes is a bug of ours and shows its traceback.
Ctrl-C and SIGTERM end with 130 and 143, and say what the same command does.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType

from tenp_edge import compare_cli, flags, interrupts, recipes, report, run_cli
from tenp_edge.disk import require_parent
from tenp_edge.errors import UserError
from tenp_edge.options import (
    CalibrationOptions,
    CompressOptions,
    ComputeOptions,
    MeasureOptions,
    StatisticsOptions,
    TextOptions,
    ValidationOptions,
)
from tenp_edge.oserrors import as_user_error
from tenp_edge.spec import PlanOptions
from tenp_edge.terminal import TerminalProgress
from tenp_edge.units import parse_size
from tenp_edge.version import __version__

app = typer.Typer(
    name="tenp-edge",
    help="Prune the experts of a Mixture-of-Experts model to a RAM budget, export it, prove it.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# In a pipe or a log there is no terminal width to respect.
out = Console(width=None if sys.stdout.isatty() else 110)
err = Console(stderr=True)
progress = TerminalProgress(err)
# Verbs whose speed is the point: there the OpenMP library's own choice stays.
_RUNNING = ("run", "serve", "bench")
# Verbs that find their own work again.
_CONTINUING = ("calibrate", "compress", "compare", "demo")


def main(command: Callable[[], object] = app) -> None:
    """Run ``command``, by default what was typed, and say in plain words what goes wrong."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        with interrupts.stopping():
            command()
    except UserError as error:
        _fail(error.message, error.hint)
    except interrupts.Stopped as stopped:
        _fail(str(stopped), _again(), stopped.exit_code)
    except OSError as error:
        refused = as_user_error(error)
        if refused is None:
            raise
        _fail(refused.message, refused.hint)


def _again() -> str:
    if any(argument in _CONTINUING for argument in sys.argv[1:2]):
        return "the same command again: it continues where it stopped"
    return "the same command again: it starts anew"


def _fail(message: str, hint: str | None, code: int = 2) -> None:
    err.print(f"error: {message}", style="bold", markup=False, highlight=False, soft_wrap=True)
    if hint:
        err.print(f"try:   {hint}", markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(code)


def _show(rendered: RenderableType, data: object, as_json: bool, last_words: object = None) -> None:
    """``rendered``, or ``data`` as JSON. ``last_words`` below it are not wrapped: commands among
    them are there to be copied."""
    if as_json:
        print(json.dumps(data, indent=1))
        return
    out.print(rendered)
    if last_words is not None:
        out.print(f"\n{last_words}", markup=False, highlight=False, soft_wrap=True)


def _version(value: bool) -> None:
    if value:
        print(f"tenp-edge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in _RUNNING:
        # Threads that wait for each other by spinning lose whole time slices where others compute
        # too: three times the CPU seconds and the time, and none gained on an idle machine.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    else:
        interrupts.leave_to_the_verb()


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the demo writes its files.")
    ] = Path("tenp-edge-demo"),
    force: flags.Force = False,
    json_output: flags.Json = False,
) -> None:
    """The whole pipeline on the bundled model, offline, in about a minute.

    Plans for a RAM budget that forces real pruning, calibrates, compresses, writes a GGUF and
    validates it against the uncompressed model.

    Examples:

        tenp-edge demo

        tenp-edge demo -o /tmp/demo --json
    """
    progress.step("demo: a plan for the bundled model")
    from tenp_edge.demo import run_demo

    result = run_demo(output, force, progress)
    _show(result.render(), result.to_json(), json_output, result.closing)


@app.command()
def inspect(model: flags.Model, json_output: flags.Json = False) -> None:
    """Family, layers, experts, parameters and bytes by part, from headers alone.

    Examples:

        tenp-edge inspect ~/models/Qwen1.5-MoE-A2.7B

        tenp-edge inspect ~/models/DeepSeek-V2-Lite --json
    """
    from tenp_edge.inspection import inspect_model

    found = inspect_model(model)
    _show(report.summary(found), found.to_json(), json_output)


@app.command()
def profiles(
    name: Annotated[str | None, typer.Argument(help="One profile, in full.")] = None,
    profile_file: flags.ProfileFile = None,
    json_output: flags.Json = False,
) -> None:
    """The device profiles, or one of them in full.

    Examples:

        tenp-edge profiles

        tenp-edge profiles laptop-8gb

        tenp-edge profiles --profile-file my-board.toml
    """
    from tenp_edge.devices import load_profile, load_profile_file, profile_names

    if name or profile_file:
        profile = load_profile_file(profile_file) if profile_file else load_profile(name or "")
        fields = asdict(profile)
        _show(report.facts(profile.name, fields.items()), fields, json_output)
        return
    rows = [asdict(load_profile(known)) for known in profile_names()]
    _show(report.device_profiles(rows), rows, json_output)


@app.command()
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
            help="A backward pass too, for --set neuron-score=heapr, heapr-sum or taylor: about "
            "three more forwards.",
        ),
    ] = False,
    types: flags.Types = False,
    json_output: flags.Json = False,
) -> None:
    """Score experts and neurons on a few samples; one layer in memory at a time.

    The same command continues after a kill. The statistics serve every later plan of this model,
    for any RAM number. `tenp-edge merge` adds up statistics of several runs.

    With --types, what every tensor type costs this model is measured too (a KL, on text held out):
    plans then weigh more neurons in fewer bits against fewer in more.

    Examples:

        tenp-edge calibrate MODEL -o WORK

        tenp-edge calibrate MODEL --types -o WORK

        tenp-edge calibrate MODEL --data code=a.jsonl --data prose=b.txt --samples 64 -o WORK
    """
    from tenp_edge.coverage import coverage
    from tenp_edge.typecosts import load_costs
    from tenp_edge.verbs import run_calibrate

    statistics = run_calibrate(model, output, options, progress, gradients, types)
    found, costs = coverage(statistics), load_costs(output) if types else None
    shown = found.to_json() | ({} if costs is None else {"types": costs.to_json()["types"]})
    _show(report.calibrated(statistics, found, costs), shown, json_output)


@app.command()
def merge(
    statistics: Annotated[list[Path], typer.Argument(help="Two or more statistics directories.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory for the sum.")],
    force: flags.Force = False,
    json_output: flags.Json = False,
) -> None:
    """Add up statistics of the same model, domain by domain; the same text is not counted twice.

    Examples:

        tenp-edge merge WORK1 WORK2 -o WORK
    """
    from tenp_edge.coverage import coverage
    from tenp_edge.verbs import run_merge

    merged = run_merge(statistics, output, force)
    found = coverage(merged)
    _show(report.coverage(merged, found), found.to_json(), json_output)


@app.command()
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
    json_output: flags.Json = False,
) -> None:
    """Decide what stays, and show what the RAM is spent on. Runs the model only with --refine.

    Without --calibration it plans by bytes, in the paper's shape. With it, every expert gets the
    width that its predicted loss is worth, and the plan names the neurons; --refine measures.
    Without a profile the device is this machine's CPU: per-expert GGUF, context 4096. With --ram
    and without --quant it chooses the tensor type and says why: by what each costs this model
    where that was measured (calibrate --types; Q8_0 down to Q2_K), else by a rule (to IQ4_XS).

    Examples:

        tenp-edge plan MODEL --ram 8GiB

        tenp-edge plan MODEL --profile laptop-8gb --context 8192

        tenp-edge plan MODEL --keep 0.6 --calibration WORK -o plan.json

        tenp-edge plan MODEL --ram 8GiB --calibration WORK --refine
    """
    from tenp_edge.verbs import run_plan

    if output is not None and not dry_run:
        require_parent(output)
    made = run_plan(model, options, known.statistics, compute, progress)
    if output is not None and not dry_run:
        made.save(output)
        asked = CompressOptions(
            statistics=known.statistics, plan=options, calibration=_calibration(compute)
        )
        recipes.write_recipe(output.with_suffix(f".{recipes.FILE}"), asked)
    _show(report.plan_report(made), made.to_json(), json_output)


def _calibration(compute: ComputeOptions) -> CalibrationOptions:
    return CalibrationOptions(**vars(compute))


@app.command()
@flags.expanded(recipes=True)
def compress(
    model: flags.Model,
    options: CompressOptions,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only plan, by bytes.")] = False,
    json_output: flags.Json = False,
) -> None:
    """Calibrate, plan, slice, export and validate: a model that fits, with proof.

    The same command continues after a kill. OUT holds plan.json, plan.safetensors, checkpoint/,
    model.gguf (or onnx/), validation.json and manifest.json. The last lines say whether it fits,
    how good it is, where it runs and what to type next. For llama.cpp, Ollama or LM Studio:
    --layout merged.

    Examples:

        tenp-edge compress MODEL --ram 8GiB -o OUT

        tenp-edge compress MODEL --profile laptop-8gb --data chat=prompts.jsonl -o OUT

        tenp-edge compress MODEL --ram 8GiB --layout merged -o OUT

        tenp-edge compress MODEL --ram 8GiB --no-repair -o OUT

        tenp-edge compress MODEL --keep 0.6 --skip-checkpoint --no-validate -o OUT
    """
    from tenp_edge.closing import closing
    from tenp_edge.pipeline import run_compress
    from tenp_edge.verbs import mend_rules, run_plan

    output = options.output
    if output is None:
        raise UserError("-o is missing: where the model is to be written", "-o OUT")
    mend_rules(options)
    if dry_run:
        made = run_plan(model, options.plan, options.statistics, options.calibration)
        _show(report.plan_report(made), made.to_json(), json_output)
        return
    result = run_compress(model, output, options, progress)
    found = result.to_json()
    last = closing(model, output, result.plan, found["validation"])
    shown = report.compressed(result.plan, found["validation"])
    _show(shown, found | {"summary": last.to_json()}, json_output, last)


@app.command()
@flags.expanded()
def export(
    checkpoint: flags.Model,
    output: Annotated[
        Path, typer.Option("-o", "--output", help="The file (ONNX: the directory) to write.")
    ],
    format: Annotated[str, typer.Option("--format", help="gguf or onnx.")] = "gguf",
    layout: flags.Layout = None,
    quant: flags.ExportQuant = None,
    tensor_types: flags.TensorTypes = None,
    latent_cache: flags.LatentCache = False,
    shard_size: flags.ShardSize = None,
    batch: flags.Batch = None,
    length: flags.Length = None,
    past: flags.Past = None,
    targets: flags.Targets = None,
    calibration: flags.Calibration = None,
    *,
    text: TextOptions,
    no_imatrix: flags.NoImatrix = False,
    imatrix_out: Annotated[
        Path | None,
        typer.Option("--imatrix-out", help="Write the importance matrix too, as llama.cpp's GGUF."),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            help="Prune by this plan.json while exporting; for a pruned checkpoint, the plan that "
            "made it (default: plan.json beside its directory).",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only the exact size.")] = False,
    force: flags.Force = False,
    json_output: flags.Json = False,
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
    from tenp_edge.registry import ExportOptions, exporter, fixed_lengths
    from tenp_edge.verbs import run_export

    if output.exists() and not (force or dry_run):
        raise UserError(f"{output} exists", "--force to overwrite it")
    if imatrix_out is not None and (calibration is None or no_imatrix):
        raise UserError("--imatrix-out has no importance matrix to write", "--calibration WORK")
    options = ExportOptions(
        quant or exporter(format).default_quant,
        layout,
        imatrix=not no_imatrix,
        tensor_types=tuple(tensor_types or ()),
        imatrix_file=None if imatrix_out is None else str(imatrix_out),
        shard_bytes=None if shard_size is None else parse_size(shard_size),
        latent_cache=latent_cache,
        lengths=fixed_lengths(batch, length, past),
        targets=tuple(targets or ()),
    )
    measured = CalibrationOptions(**vars(text))
    manifest = run_export(
        checkpoint, output, format, options, plan, progress, dry_run, calibration, measured
    )
    rows: dict[str, Any] = {
        "format": manifest.format,
        "layout": manifest.layout,
        "quant": manifest.quant,
        "tensors": len(manifest.tensors),
        "bytes": manifest.file_bytes,
        "notes": list(manifest.notes),
    }
    _show(report.facts(str(output), rows.items()), rows, json_output)


@app.command()
@flags.expanded()
def validate(
    reference: flags.Model,
    candidate: Annotated[
        Path, typer.Argument(help="A GGUF file, an ONNX directory, a checkpoint, or OUT.")
    ],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="A domain, as in compress; default: held-out text of the package."
        ),
    ] = None,
    samples: Annotated[int, typer.Option("--samples", help="Chunks per domain.")] = 8,
    seq_len: Annotated[int, typer.Option("--seq-len", help="Tokens per chunk.")] = 512,
    *,
    compute: ComputeOptions,
    threads: flags.Threads = None,
    twin: flags.Twin = False,
    no_split: flags.NoSplit = False,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", help="The plan.json that the file was pruned by."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="The pruned checkpoint that the file was made from."),
    ] = None,
    context: flags.MeasuredContext = None,
    kv_type: flags.MeasuredKvType = "F16",
    ubatch: flags.MeasuredUbatch = 512,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write the report here (JSON).")
    ] = None,
    json_output: flags.Json = False,
) -> None:
    """KL divergence, agreement and perplexity of CANDIDATE against REFERENCE, by domain.

    The reference runs layer by layer, so it may be bigger than the RAM. A GGUF runs in its own
    runtime: merged and padded ones in unmodified llama.cpp, per-expert ones in ours, or with
    --twin in unmodified llama.cpp too, with zeros where neurons were cut. Its peak memory is
    predicted and measured in a process of its own, for the run that --context, --kv-type and
    --ubatch describe.

    A GGUF's loss is split into what pruning does (the pruned model, unquantised), quantisation
    (the weights that the file holds) and the runtime (the file as it runs). The first needs the
    pruned model: the checkpoint or plan.json beside the file, or --checkpoint or --plan.

    Examples:

        tenp-edge validate MODEL OUT

        tenp-edge validate MODEL OUT/model.gguf --twin

        tenp-edge validate MODEL elsewhere.gguf --plan OUT/plan.json

        tenp-edge validate MODEL OUT/checkpoint --data chat=prompts.jsonl --samples 16
    """
    if output is not None:
        require_parent(output)
    progress.step(f"validating {candidate.name} against {reference.name}")
    from tenp_edge.checkpoint import write_text
    from tenp_edge.pruned import PrunedBy
    from tenp_edge.verbs import run_validate
    from tenp_edge.verdict import judge

    options = ValidationOptions(tuple(data or ()), samples, seq_len, threads, twin, not no_split)
    pruned_by, measure = PrunedBy(checkpoint, plan), MeasureOptions(context, kv_type, ubatch)
    found = run_validate(
        reference, candidate, options, compute, progress, pruned_by, measure
    ).to_json()
    verdict = judge(found["overall"], found["domains"])
    found |= {"verdict": verdict.to_json()}
    if output is not None:
        write_text(output, json.dumps(found, indent=1) + "\n")
    _show(report.validated(found), found, json_output, verdict)


for _verb in (compare_cli.compare, run_cli.run, run_cli.serve, run_cli.bench):
    app.command()(_verb)


if __name__ == "__main__":
    main()
