"""The verb fit."""

from __future__ import annotations

from collections.abc import Iterator
from shlex import join
from typing import TYPE_CHECKING, Annotated

import typer

from tenp_edge.checkpoint.model_origin import DEMO, bundled
from tenp_edge.cli.flags import declared as flags
from tenp_edge.cli.hub import spelled
from tenp_edge.cli.output.screen import Screen
from tenp_edge.cli.report.entries import Entries
from tenp_edge.cli.report.rich_tables import table
from tenp_edge.errors import UserError
from tenp_edge.planning.options.devices import device_words
from tenp_edge.units import format_count, format_size, percent, write_size
from tenp_edge.verbs.fit_options import FitOptions

if TYPE_CHECKING:
    from tenp_edge.verbs.fit import Fit, Fitting


@flags.expanded()
def fit(
    model: Annotated[
        str,
        typer.Argument(
            help="A model directory, a GGUF, or OWNER/NAME on the Hugging Face hub.",
            show_default=False,
        ),
    ],
    options: FitOptions,
    *,
    screen: Screen,
) -> None:
    """What of a model fits here, in which type, how large and how fast, before it is downloaded.

    Reads config.json and the headers of the weights, on the hub by ranged reads. Sizes are exact,
    peak memory and speed are estimates. What a cut costs in quality is known after a calibration.

    Examples:

        tenp-edge fit Qwen/Qwen3-30B-A3B

        tenp-edge fit ~/models/OLMoE-1B-7B --ram 6GiB --context 8192

        tenp-edge fit model-Q8_0.gguf --profile pi5-8gb --json
    """
    from pathlib import Path

    from tenp_edge.verbs.fit import run_fit

    path = bundled() if model == DEMO and not Path(model).exists() else Path(model)
    where = (str(path), None, None) if path.exists() else spelled(model)
    if where is None:
        raise UserError(f"{model} does not exist", "a model directory, a GGUF, or OWNER/NAME")
    screen.progress.step(f"fit: reading the headers of {model}")
    repository, file, revision = where
    found = run_fit(repository, options, file, revision)
    shown = table("", _COLUMNS, [_row(one, found) for one in found.fits])
    screen.show(found.to_json(), shown, _entries(model, found, options), line=_verdict(found))


_UNKNOWN = "not known before a calibration, which compress does"
_EQUAL = (
    "; the table's experts are equally narrow, compress gives each its own width and keeps more"
)
_COARSE = 0.05  # of an expert's width: the next type's line may be no better for that alone
_COLUMNS = ("type", "neurons kept", "file", "peak memory", "tokens/s at most", "")


def _row(one: Fit, found: Fitting) -> tuple[str, ...]:
    mark = "<- best" if one == found.best else ""
    if not one.kept:
        return (one.quant, "does not fit", "", f"whole {format_size(one.whole_peak_bytes)}", "", "")
    kept = "all" if one.kept == 1 else percent(one.kept)
    speed = one.tokens_per_second
    shown = f"{speed:.1f}" if speed < 100 else f"{speed:,.0f}"
    return one.quant, kept, format_size(one.file_bytes), format_size(one.peak_bytes), shown, mark


def _verdict(found: Fitting) -> str:
    best = found.best
    if best is None:
        return f"does not fit into {format_size(found.budget_bytes)}"
    kept = "whole" if best.kept == 1 else f"with {percent(best.kept)} of the experts' neurons"
    few = "; under 40 % little is left of a model" if best.kept < 0.4 else ""
    kind = "unquantised" if best.quant == "none" else f"as {best.quant}"  # ONNX's own word
    return f"fits into {format_size(found.budget_bytes)} {kept}, {kind}{few}"


def _quality(best: Fit | None) -> str:
    if best is None or best.kept == 1:
        return _UNKNOWN + ("" if best else _EQUAL)
    coarse = f", and not in steps of {percent(best.step)}" if best.step >= _COARSE else ""
    return _UNKNOWN + _EQUAL + coarse


def _entries(model: str, found: Fitting, options: FitOptions) -> Entries:
    summary = found.summary
    read = "" if found.read_bytes is None else f"; {format_size(found.read_bytes)} were read"
    measured = "measured now" if found.measured else f"of {found.device}"
    lines = [
        ("verdict", _verdict(found)),
        (
            "model",
            f"{summary.family}, {format_count(summary.parameters)} parameters, "
            f"{format_count(summary.active_parameters)} active per token, "
            f"{format_size(found.stored_bytes)} of weights{read}",
        ),
        (
            "memory",
            f"{format_size(found.budget_bytes)} for the run on {device_words(found.device)}",
        ),
        ("context", f"{found.context} tokens"),
        ("speed", f"at most: active bytes over {found.bandwidth / 1e9:.1f} GB/s, {measured}"),
        ("quality", _quality(found.best)),
    ]
    return Entries(lines, tuple(_commands(model, found, options)))


def _commands(model: str, found: Fitting, options: FitOptions) -> Iterator[tuple[str, str]]:
    if found.best is None:
        yield "more memory", join(["tenp-edge", "fit", model, "--ram", found.needed])
        return
    size = ["--profile", options.profile] if options.profile else []
    if options.budget_bytes or not size:
        size += ["--ram", write_size(found.budget_bytes) if options.budget_bytes else "auto"]
    context = ["--context", str(options.context)] if options.context else []
    cache = ["--kv-type", options.kv_type] if options.kv_type else []
    words = ["tenp-edge", "compress", model, *size, *context, *cache, "-o", "OUT"]
    yield "make it", join(words)
