"""What people see of measurements: validation and coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tenp_edge.units import format_size, percent

if TYPE_CHECKING:  # torch takes a second to load, and some verbs never need it
    from pathlib import Path

    from tenp_edge.calibration.coverage import Coverage
    from tenp_edge.calibration.storage import Statistics
    from tenp_edge.checkpoint.compression_plan import CompressionPlan
    from tenp_edge.evaluation.verdict import Verdict
    from tenp_edge.planning.measured.rounding_errors import RoundingErrors
    from tenp_edge.planning.measured.type_costs import TypeCosts
from tenp_edge.cli.report.closing import LEGEND
from tenp_edge.cli.report.entries import Entries
from tenp_edge.cli.report.plan_tables import plan_report
from tenp_edge.cli.report.rich_tables import facts, table

PERPLEXITY = "perplexity: how surprised a model is by the text, lower is better"


def validation(report: Mapping[str, Any]) -> RenderableType:
    """``tenp-edge validate``: the file by domain, and where its loss comes from."""
    parts: list[RenderableType] = [domain_scores(report)]
    if len(report["losses"]) > 1:
        parts.append(losses(report["losses"]))
    if report["graph_checks"]:
        parts.append(graph_checks(report["graph_checks"]))
    if report["losses_note"]:
        parts.append(Text(f"note: {report['losses_note']}"))
    return Group(*parts)


def graph_checks(checks: Sequence[Mapping[str, Any]]) -> Table:
    """One row a way to run the ONNX graph."""
    rows = [
        (
            check["way"],
            "-" if check["relative_rms"] is None else f"{check['relative_rms']:.1e}",
            check["note"] or "",
        )
        for check in checks
    ]
    return table("The graph against torch on its own weights", ("run as", "error", "note"), rows)


def losses(stages: Sequence[Mapping[str, Any]]) -> Table:
    """One row a step from the reference to the file: mean KL after it, and what it added."""
    rows = [
        (
            row["stage"],
            f"{row['overall']['mean_kl']:.4f}",
            f"{row['added_kl']:+.4f}",
            f"{row['overall']['kl_99']:.3f}",
            percent(row["overall"]["same_top"]),
            f"{row['overall']['candidate_perplexity']:.2f}",
            row["through"],
        )
        for row in stages
    ]
    kl = ("mean KL", "added", "99 of 100 below", "same first token")
    columns = ("after", *kl, "perplexity", "computed by")
    return table("Where the loss comes from", columns, rows)


def domain_scores(report: Mapping[str, Any]) -> Table:
    """One row a domain, KL in nats; how much probability the true token gains, mean and RMS."""
    rows = [
        (
            row["domain"],
            row["tokens"],
            f"{row['mean_kl']:.4f}",
            f"{row['kl_99']:.3f}",
            f"{row['max_kl']:.3f}",
            percent(row["same_top"]),
            f"{100 * row['mean_delta_p']:+.2f} %",
            f"{100 * row['rms_delta_p']:.2f} %",
            f"{row['reference_perplexity']:.2f}",
            f"{row['candidate_perplexity']:.2f}",
            f"{row['perplexity_ratio']:.3f}",
        )
        for row in report["domains"]
    ]
    kl = ("mean KL", "99 of 100 below", "largest", "same first token")
    true = ("true token gains", "changes by")
    perplexity = ("perplexity, whole", "file", "ratio")
    columns = ("kind of text", "tokens", *kl, *true, *perplexity)
    return table(f"Against the whole model ({report['judged_through']})", columns, rows)


def validated(report: Mapping[str, Any]) -> RenderableType:
    """``tenp-edge validate --verbose``: the comparison, and the peak where the file was run."""
    return Group(validation(report), peak_rss(report))


def by_kind(report: Mapping[str, Any]) -> Table:
    """One row a kind of text, in plain words."""
    rows = [
        (
            row["domain"],
            f"{row['tokens']:,}",
            f"{row['mean_kl']:.4f}",
            percent(row["same_top"]),
            f"{row['reference_perplexity']:.2f} -> {row['candidate_perplexity']:.2f}",
        )
        for row in report["domains"]
    ]
    columns = ("kind of text", "tokens", "KL", "same first token", "perplexity, whole -> file")
    return table("", columns, rows)


def validation_entries(report: Mapping[str, Any], verdict: Verdict) -> Entries:
    """The screen of ``validate``."""
    lines = [("quality", str(verdict)), ("", LEGEND), ("", PERPLEXITY)]
    steps = [
        f"{row['stage']} {row['added_kl']:+.4f}"
        for row in report["losses"]
        if row["added_kl"] is not None
    ]
    if len(steps) > 1:
        lines.append(("lost by", f"{', '.join(steps)} (KL)"))
    lines += [("memory", text) for text in _peak(report)]
    if report["losses_note"]:
        lines.append(("note", report["losses_note"]))
    lines.append(("more", "--verbose: spread, worst tokens, every stage; -o FILE keeps it as JSON"))
    return Entries(lines)


def _peak(report: Mapping[str, Any]) -> list[str]:
    measured, predicted = report.get("measured_peak_rss"), report.get("predicted_peak_rss")
    said = [f"{format_size(predicted)} predicted"] if predicted else []
    said += [f"{format_size(measured)} measured at the peak"] if measured else []
    return [", ".join(said)] if said else []


def compressed(plan: CompressionPlan, checked: Mapping[str, Any] | None) -> Group:
    """``compress``: what was written, what it costs, what it needs."""
    parts: list[RenderableType] = [plan_report(plan)]
    if checked is not None:
        parts.append(validated(checked))
    return Group(*parts)


def peak_rss(checked: Mapping[str, Any]) -> RenderableType:
    """Predicted beside measured peak RSS, labelled with what was run."""
    measured, predicted = checked.get("measured_peak_rss"), checked.get("predicted_peak_rss")
    rows = [("predicted", format_size(predicted))] if predicted else []
    if measured:
        rows.append((f"measured ({checked.get('measured_as')})", format_size(measured)))
    return facts("Peak memory", rows) if rows else Text("")


def calibrated(
    statistics: Statistics,
    covered: Coverage,
    costs: TypeCosts | None = None,
    errors: RoundingErrors | None = None,
) -> RenderableType:
    """``tenp-edge calibrate``: the coverage, and what types do where that was measured."""
    parts: list[RenderableType] = [coverage(statistics, covered)]
    if errors is not None:
        rows = [(name, cost.type, f"{cost.kl:.5f}") for name, cost in errors.groups.items()]
        columns = ("matrices", "in", "KL of the whole model")
        parts.append(table(f"Types, measured in {errors.seconds:.0f} s", columns, rows))
    elif costs is not None:
        times = [
            (name, f"{cost.kl:.4f}", f"{cost.seconds:.0f} s") for name, cost in costs.types.items()
        ]
        title = f"Types: KL of the whole model, {len(costs.layers)} layers quantised"
        parts.append(table(title, ("type", "KL", "took"), times))
    return Group(*parts)


def coverage(statistics: Statistics, covered: Coverage) -> RenderableType:
    """``tenp-edge calibrate``: tokens per domain and experts that were seen too rarely."""
    rows = [
        (
            name,
            counts["samples"],
            counts["tokens"],
            sum(covered.below[name].values()),
            sum(covered.unreached[name].values()),
        )
        for name, counts in statistics.info["domains"].items()
    ]
    few = f"experts under {covered.min_tokens} tokens"
    columns = ("kind of text", "samples", "tokens", few, "experts without any")
    return Group(table("What was read", columns, rows), Text(seen(covered)))


def seen(covered: Coverage) -> str:
    """How many experts are known well enough to be cut by what they do."""
    total = covered.experts * len(covered.below_everywhere)
    few = sum(covered.below_everywhere.values())
    return f"{total - few} of {total} experts saw at least {covered.min_tokens} tokens"


def calibration_entries(
    statistics: Statistics, covered: Coverage, output: Path, model: str, more: str = ""
) -> Entries:
    """The screen of ``calibrate`` and ``merge``; ``model`` as it is typed, and ``more`` options of
    the plan."""
    domains = statistics.info["domains"].items()
    read = ", ".join(f"{name} ({counts['tokens']:,} tokens)" for name, counts in domains)
    few = sum(covered.below_everywhere.values())
    advice = "; the others are cut by guess: more text (--samples) helps" if few else ""
    lines = [
        ("read", read),
        ("seen", seen(covered) + advice),
        ("written", f"{output}, for every later plan of this model, at any RAM"),
    ]
    plan = f"tenp-edge plan {quote(model)} --ram 8GiB{more} --calibration {quote(str(output))}"
    return Entries(lines, (("plan", plan),))


def tasks(found: Mapping[str, Any]) -> RenderableType:
    """lm-eval's scores: a row a task and metric, a column a model."""
    models = list(found["scores"])
    names = {
        (task, metric)
        for scores in found["scores"].values()
        for task, row in scores.items()
        for metric in row
    }
    rows = []
    for task, metric in sorted(names):
        values = [found["scores"][model].get(task, {}).get(metric) for model in models]
        shown = ["" if value is None else f"{value:.4f}" for value in values]
        rows.append((task, metric.removesuffix(",none"), *shown))
    return table("lm-eval", ("task", "metric", *models), rows)
