"""What people see: tables and small pictures for the terminal. Takes data, returns renderables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tenp_edge.units import format_count, format_size, nats

if TYPE_CHECKING:  # torch takes a second to load, and some verbs never need it
    from tenp_edge.compare.table import Line, Prediction
    from tenp_edge.coverage import Coverage
    from tenp_edge.inspection import ModelSummary, PartSize
    from tenp_edge.plan import CompressionPlan
    from tenp_edge.record import PlanRecord
    from tenp_edge.statistics import Statistics
    from tenp_edge.typecosts import TypeCosts

_BLOCKS = " ▏▎▍▌▋▊▉█"
_BAR_CELLS = 24


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table: first column left, the others right."""
    drawn = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for index, column in enumerate(columns):
        drawn.add_column(column, justify="right" if index else "left", no_wrap=not index)
    for row in rows:
        drawn.add_row(*(str(cell) for cell in row))
    return drawn


def bar(share: float, cells: int = _BAR_CELLS) -> str:
    """``share`` (0..1) as a bar of ``cells`` characters, in eighths."""
    eighths = round(min(max(share, 0.0), 1.0) * cells * 8)
    full, rest = divmod(eighths, 8)
    partial = _BLOCKS[rest] if rest else ""
    return ("█" * full + partial).ljust(cells, "·")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


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


def memory(plan: CompressionPlan) -> Table:
    """What the RAM is spent on, from the plan's memory table (bytes)."""
    rows = [
        (label, format_size(plan.memory[key]))
        for key, label in (
            ("experts_bytes", "routed experts"),
            ("other_weights_bytes", "other weights"),
            ("kv_bytes", "KV cache"),
            ("compute_bytes", "compute"),
            ("overhead_bytes", "process, vocabulary"),
            ("total_bytes", "predicted peak RSS"),
        )
        if key in plan.memory
    ]
    if plan.record.budget_bytes:
        rows.append(("headroom", format_size(plan.memory["headroom_bytes"])))
        rows.append(("budget", format_size(plan.memory["budget_bytes"])))
    source = plan.memory.get("source")
    title = "Memory (estimated)" if source == "estimate" else "Memory"
    return table(title, ("part", "size"), rows)


def widths(plan: CompressionPlan) -> Table:
    """One line a layer: a bar for the share of neurons kept, and the widths behind it."""
    rows = []
    for layer, row in sorted(plan.widths.items()):
        share = sum(row) / (len(row) * plan.full_width)
        rows.append((layer, bar(share), percent(share), _describe_widths(row, plan.full_width)))
    drawn = Table(title="Widths", title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for column in ("layer", "neurons kept", "", "experts"):
        drawn.add_column(column)
    for cells in rows:
        drawn.add_row(*(str(cell) for cell in cells))
    return drawn


def _describe_widths(row: Sequence[int], full: int) -> str:
    """ "5 whole, 11 x 64" or, with many widths, "2 whole, 58 of 128..1024"."""
    whole = sum(width == full for width in row)
    removed = sum(width == 0 for width in row)
    narrow = sorted({width for width in row if width not in (0, full)})
    count = len(row) - whole - removed
    parts = [f"{whole} whole"] if whole else []
    if len(narrow) == 1:
        parts.append(f"{count} x {narrow[0]}")
    elif narrow:
        parts.append(f"{count} of {narrow[0]}..{narrow[-1]}")
    if removed:
        parts.append(f"{removed} removed")
    return ", ".join(parts)


def _record_lines(plan: CompressionPlan) -> list[str]:
    record, trapezoid = plan.record, plan.record.trapezoid
    lines = [
        f"{record.method}: keeps {percent(plan.keep_ratio)} of the routed-expert neurons (rho), "
        f"{percent(record.model_retention)} of the model's parameters",
    ]
    if record.quant:
        lines.append(_type_line(record))
    if trapezoid is not None:
        lines.append(
            f"trapezoid: {percent(trapezoid.whole_share)} of the experts whole (alpha), the others "
            f"{trapezoid.narrow_width} wide (beta {trapezoid.beta:.2f}), shape "
            f"{trapezoid.shallow:g} -> {trapezoid.deep:g} by {record.chosen_by}"
        )
    if record.predicted_kl is not None and plan.keep_ratio < 1:
        lines += _choice_lines(record, record.predicted_kl)
    if record.active_ratio is not None:
        lines.append(f"R_active: {percent(record.active_ratio)} of the routed width per token")
    if plan.memory.get("tokens_per_second"):
        speed = plan.memory["tokens_per_second"]
        lines.append(f"decode: about {_rounded(speed)} tokens/s, by memory bandwidth (an estimate)")
    return lines


def _choice_lines(record: PlanRecord, kl: float) -> list[str]:
    """What the plan will cost, and why it is this one."""
    sized = "asked for" if record.budget_bytes is None else "the largest within the budget"
    by_type = ""
    if record.type_kl is not None:
        by_type = f" by pruning, {record.type_kl:.2g} by the type"
    lines = [f"predicted KL: about {kl:.2g} nats a token{by_type}; size: {sized}"]
    refined = record.refined
    if refined:
        best, *others = refined["tried"]
        worst = max((trial["mean_kl"] for trial in others), default=best["mean_kl"])
        changes = ", ".join(f"{k} {v}" for k, v in best["changes"].items()) or "no change"
        lines.append(
            f"refined: {changes} measured {best['mean_kl']:.3g} nats on held-out text, best of "
            f"{len(refined['tried'])} (worst {worst:.3g}), in {refined['seconds']:.0f} s"
        )
    return lines


def frontier(plan: CompressionPlan) -> Table:
    """RAM against predicted KL, the chosen plan marked."""
    rows = [
        (
            format_size(point["total_bytes"]),
            percent(point["keep_ratio"]),
            f"{point['predicted_kl']:.2g}",
            "<- chosen" if point["chosen"] else "",
        )
        for point in plan.record.frontier
    ]
    columns = ("peak RSS", "neurons kept", "predicted KL", "")
    return table(f"Frontier of {plan.record.method}", columns, rows)


def _type_line(record: PlanRecord) -> str:
    """The tensor type, and where it was chosen by us, why and among what."""
    chosen = record.type_choice
    if chosen is None:
        return f"type: {record.quant}"
    if "types" in chosen:  # a table follows
        return f"type: {record.quant}, {chosen['reason']}"
    kept = ", ".join(f"{name} about {percent(share)}" for name, share in chosen["kept"].items())
    return f"type: {record.quant}, {chosen['reason']} (would keep: {kept})"


def type_tables(choice: Mapping[str, Any]) -> list[Table]:
    """Every measured type within the RAM, and the best one for other RAM numbers."""
    columns = ("type", "neurons kept", "KL by pruning", "by the type", "together", "")
    rows = [
        (*_type_cells(point), "<- chosen" if point["quant"] == choice["quant"] else "")
        for point in choice["types"]
    ]
    around = [
        (
            format_size(point["budget_bytes"]),
            *_type_cells(point),
            "<- asked" if point["share"] == 1 else "",
        )
        for point in choice["frontier"]
    ]
    found = [table("Types within the RAM (predicted; types as measured)", columns, rows)]
    return found + ([table("Other RAM numbers", ("RAM", *columns), around)] if around else [])


def _type_cells(point: Mapping[str, Any]) -> tuple[str, ...]:
    losses = (f"{point[name]:.2g}" for name in ("pruning_kl", "type_kl", "kl"))
    return (point["quant"], percent(point["keep_ratio"]), *losses)


def _rounded(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def plan_report(plan: CompressionPlan) -> RenderableType:
    """The plan as printed by ``tenp-edge plan``: choice, memory, widths, files."""
    choice = plan.record.type_choice or {}
    notes = [*plan.record.notes, *([choice["note"]] if choice.get("note") else [])]
    lines = [*_record_lines(plan), *(f"note: {note}" for note in notes)]
    parts: list[RenderableType] = [Text("\n".join(lines)), memory(plan)]
    parts += type_tables(choice) if "types" in choice else []
    parts += [frontier(plan)] if plan.record.frontier else []
    parts.append(widths(plan))
    if plan.files:
        rows = [(name, f"{size:,}", format_size(size)) for name, size in plan.files.items()]
        parts.append(table("Files (exact)", ("file", "bytes", "size"), rows))
    return Group(*parts)


def summary(inspected: ModelSummary) -> RenderableType:
    """``tenp-edge inspect``: a few lines of facts and the bytes by part."""
    narrow, wide = inspected.width_min, inspected.width_max
    widths = f"{narrow}..{wide} of {inspected.width}" if narrow < wide else wide
    lines = [
        f"{inspected.family}: {inspected.layers} layers, {inspected.moe_layers} of them with "
        f"{inspected.experts} experts (top-{inspected.experts_per_token}), "
        f"expert width {widths}, "
        f"hidden {inspected.hidden_size}, context {inspected.context}",
        f"{format_count(inspected.parameters)} parameters, "
        f"{format_count(inspected.active_parameters)} active per token, "
        f"{', '.join(inspected.dtypes)} in {inspected.files} file(s)",
    ]
    if inspected.pruned:
        lines.append(
            f"pruned ({inspected.method}): keeps {percent(inspected.keep_ratio)} "
            "of the routed-expert neurons"
        )
    if inspected.left_out:
        lines.append(
            f"left out of every output: {len(inspected.left_out)} tensors of multi-token "
            f"prediction layers ({format_size(inspected.left_out_bytes)})"
        )
    rows = [
        (part, format_count(size.parameters), format_size(size.bytes), _share(size, inspected))
        for part, size in inspected.parts.items()
        if size.parameters
    ]
    total = (format_count(inspected.parameters), format_size(inspected.bytes), "")
    columns = ("part", "parameters", "bytes", "share")
    return Group(Text("\n".join(lines)), table("", columns, [*rows, ("total", *total)]))


def _share(size: PartSize, inspected: ModelSummary) -> str:
    return percent(size.bytes / max(inspected.bytes, 1))


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


def calibrated(statistics: Statistics, found: Coverage, costs: TypeCosts | None) -> RenderableType:
    """``tenp-edge calibrate``: the coverage, and what the types cost where that was measured."""
    if costs is None:
        return coverage(statistics, found)
    rows = [(name, f"{cost.kl:.4f}", f"{cost.seconds:.0f} s") for name, cost in costs.types.items()]
    title = f"Types: KL of the whole model, {len(costs.layers)} layers quantised"
    return Group(coverage(statistics, found), table(title, ("type", "KL", "took"), rows))


def coverage(statistics: Statistics, found: Coverage) -> RenderableType:
    """``tenp-edge calibrate``: tokens per domain and experts that were seen too rarely."""
    rows = [
        (
            name,
            counts["samples"],
            counts["tokens"],
            sum(found.below[name].values()),
            sum(found.unreached[name].values()),
        )
        for name, counts in statistics.info["domains"].items()
    ]
    columns = ("domain", "samples", "tokens", f"experts < {found.min_tokens}", "unreached")
    total = found.experts * len(found.below_everywhere)
    few = sum(found.below_everywhere.values())
    line = f"{total - few} of {total} experts saw at least {found.min_tokens} tokens"
    return Group(table("Coverage", columns, rows), Text(line))


def device_profiles(rows: Sequence[Mapping[str, Any]]) -> Table:
    """``tenp-edge profiles``."""
    columns = ("profile", "memory", "for the model", "runtime", "type", "context", "bandwidth")
    return table(
        "Device profiles",
        columns,
        [
            (
                row["name"],
                format_size(row["memory_bytes"]),
                format_size(row["memory_bytes"] - row["system_bytes"]),
                row["runtime"],
                row["default_tensor_type"],
                row["context"],
                f"{row['memory_bandwidth_bytes_per_second'] / 1e9:.0f} GB/s",
            )
            for row in rows
        ],
    )


def facts(title: str, rows: Iterable[tuple[str, object]]) -> Table:
    """Two columns: a name and a value."""
    drawn = table(title, ("", ""), rows)
    drawn.show_header = False
    return drawn
