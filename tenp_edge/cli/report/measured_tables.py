"""What people see of measurements: validation, comparison, coverage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tenp_edge.units import format_size, nats

if TYPE_CHECKING:  # torch takes a second to load, and some verbs never need it
    from tenp_edge.calibration.coverage import Coverage
    from tenp_edge.calibration.storage import Statistics
    from tenp_edge.checkpoint.compression_plan import CompressionPlan
    from tenp_edge.evaluation.comparison.table import Line, Prediction
    from tenp_edge.evaluation.matched.table import Section
    from tenp_edge.planning.rounding_errors import RoundingErrors
    from tenp_edge.planning.type_costs import TypeCosts
from tenp_edge.cli.report.plan_tables import plan_report
from tenp_edge.cli.report.rich_tables import facts, percent, table


def comparison(lines: Sequence[Line], predicted: Sequence[Prediction] = ()) -> Group:
    """One table a keep ratio: methods by KL, bytes, R_active, and KL by domain; then how well
    predicted losses ranked the plans."""
    parts = []
    for keep in dict.fromkeys(line.keep for line in lines):
        chosen = [line for line in lines if line.keep == keep]
        domains, tasks = list(chosen[0].kl_by_domain), list(chosen[0].tasks)
        columns = ["method", "experts", "R_active", "KL", "ppl ratio", "same top"]
        titles = [task.split("_")[0] for task in tasks]
        rows = [
            (
                line.method,
                format_size(line.expert_bytes),
                "" if line.active_ratio is None else percent(line.active_ratio),
                line.kl,
                f"{line.perplexity_ratio.mean:.3f}",
                percent(line.same_top.mean),
                *(nats(line.kl_by_domain[domain].mean) for domain in domains),
                *(percent(line.tasks[task].mean) for task in tasks),
            )
            for line in chosen
        ]
        title = f"keep {keep:g}: {percent(chosen[0].kept)} of the routed-expert parameters"
        parts.append(table(title, [*columns, *domains, *titles], rows))
    if predicted:
        rows = [
            ("all" if p.keep is None else f"{p.keep:g}", p.plans, f"{p.rank_correlation:.3f}")
            for p in predicted
        ]
        title = "Predicted loss against measured KL"
        parts.append(table(title, ["keep", "plans", "rank correlation"], rows))
    return Group(*parts)


def matched(sections: Sequence[Section]) -> Group:
    """One table a budget: the ways to spend it, what they are, the file as it runs."""
    return Group(*(table(one.title, one.headings, one.rows) for one in sections))


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
    columns = ("after", "mean KL", "added", "99 %", "same top", "ppl", "computed by")
    return table("Where the loss comes from", columns, rows)


def domain_scores(report: Mapping[str, Any]) -> Table:
    """One row a domain, KL in nats; delta p: how much the true token gains, mean and RMS."""
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
    kl, delta = ("mean KL", "99 %", "max", "same top"), ("delta p", "RMS")
    columns = ("domain", "tokens", *kl, *delta, "ppl ref", "ppl", "ratio")
    return table(f"Against the reference ({report['judged_through']})", columns, rows)


def validated(report: Mapping[str, Any]) -> RenderableType:
    """``tenp-edge validate``: the comparison, and the peak RSS where the file was run for it."""
    return Group(validation(report), peak_rss(report))


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
    return facts("Peak RSS", rows) if rows else Text("")


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
    columns = ("domain", "samples", "tokens", f"experts < {covered.min_tokens}", "unreached")
    total = covered.experts * len(covered.below_everywhere)
    few = sum(covered.below_everywhere.values())
    line = f"{total - few} of {total} experts saw at least {covered.min_tokens} tokens"
    return Group(table("Coverage", columns, rows), Text(line))


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
