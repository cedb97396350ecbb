"""What people see of a plan: its memory, widths, types and frontier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tenp_edge.units import format_size, percent

if TYPE_CHECKING:  # torch takes a second to load, and some verbs never need it
    from tenp_edge.checkpoint.compression_plan import CompressionPlan
    from tenp_edge.checkpoint.plan_record import PlanRecord
from tenp_edge.cli.report import joint_report
from tenp_edge.cli.report.plain_notes import merged
from tenp_edge.cli.report.rich_tables import bar, table


def memory(plan: CompressionPlan) -> Table:
    """What the RAM is spent on, from the plan's memory table (bytes)."""
    rows = [
        (label, format_size(plan.memory[key]))
        for key, label in (
            ("experts_bytes", "routed experts"),
            ("other_weights_bytes", "other weights"),
            ("kv_bytes", "KV cache"),
            ("compute_bytes", "compute buffers"),
            ("overhead_bytes", "the process and the vocabulary"),
            ("total_bytes", "peak, predicted"),
        )
        if key in plan.memory
    ]
    if plan.record.budget_bytes:
        rows.append(("left over", format_size(plan.memory["headroom_bytes"])))
        rows.append(("budget", format_size(plan.memory["budget_bytes"])))
    source = plan.memory.get("source")
    title = "Memory (estimated)" if source == "estimate" else "Memory"
    return table(title, ("part", "size"), rows)


def widths(plan: CompressionPlan) -> Table:
    """One line a layer: a bar for the share of neurons kept, and the widths behind it."""
    rows, full = [], plan.full_width
    gone = "without neurons" if plan.keeps_places else "removed"
    for layer, row in sorted(plan.widths.items()):
        share = sum(row) / (len(row) * full)
        rows.append((layer, bar(share), percent(share), _describe_widths(row, full, gone)))
    return table("Widths", ("layer", "neurons kept", "share", "experts"), rows, left=4)


def _describe_widths(row: Sequence[int], full: int, gone: str) -> str:
    """ "5 whole, 11 x 64" or, with many widths, "2 whole, 58 of 128..1024"; ``gone``: what experts
    of width 0 are called."""
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
        parts.append(f"{removed} {gone}")
    return ", ".join(parts)


def _record_lines(plan: CompressionPlan) -> list[str]:
    record, trapezoid = plan.record, plan.record.trapezoid
    lines = [
        f"{record.method}: keeps {percent(plan.keep_ratio)} of the routed-expert neurons, "
        f"{percent(record.model_retention)} of the model's parameters",
    ]
    choice = record.type_choice or {}
    if "bits_per_weight" in choice:
        total = plan.memory["total_bytes"]
        lines.append(joint_report.what_it_buys(choice, plan.keep_ratio, total))
    elif record.quant:
        lines.append(_type_line(record))
    if trapezoid is not None:
        lines.append(
            f"{percent(trapezoid.whole_share)} of the experts stay whole, the others are "
            f"{trapezoid.narrow_width} wide ({percent(trapezoid.beta)}); the first layer has "
            f"{trapezoid.shallow:g} of the whole ones where the last has {trapezoid.deep:g}, "
            f"chosen by {record.chosen_by}"
        )
    if record.predicted_kl is not None and plan.keep_ratio < 1:
        lines += _choice_lines(record, record.predicted_kl)
    if record.active_ratio is not None:
        active = percent(record.active_ratio)
        lines.append(f"active: a token meets {active} of the experts' width that it met before")
    if plan.memory.get("tokens_per_second"):
        speed = plan.memory["tokens_per_second"]
        lines.append(f"speed: at most {_rounded(speed)} tokens/s (an estimate)")
    return lines


def _choice_lines(record: PlanRecord, kl: float) -> list[str]:
    """What the plan will cost, and why it is this one."""
    sized = "asked for" if record.budget_bytes is None else "the largest within the budget"
    by_type, joint = "", "bits_per_weight" in (record.type_choice or {})
    if record.type_kl is not None:
        by_type = f" by pruning, {record.type_kl:.2g} by the type{'s' * joint}"
    between = record.predicted_kl_range
    sure = f" ({between[0]:.2g} to {between[1]:.2g} in nine cases of ten)" if between else ""
    lines = [f"predicted KL: about {kl:.2g} a token{sure}{by_type}; size: {sized}"]
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
    columns = ("RAM", "neurons kept", "predicted KL", "")
    return table("What other RAM numbers buy (predicted)", columns, rows)


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
    tables = [table("Types within the RAM (predicted; types as measured)", columns, rows)]
    return tables + ([table("Other RAM numbers", ("RAM", *columns), around)] if around else [])


def _type_cells(point: Mapping[str, Any]) -> tuple[str, ...]:
    losses = (f"{point[name]:.2g}" for name in ("pruning_kl", "type_kl", "kl"))
    return (point["quant"], percent(point["keep_ratio"]), *losses)


def _rounded(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def plan_report(plan: CompressionPlan) -> RenderableType:
    """The plan as printed by ``tenp-edge plan``: choice, memory, widths, files."""
    choice = plan.record.type_choice or {}
    notes = [*plan.record.notes, *([choice["note"]] if choice.get("note") else [])]
    lines = [*_record_lines(plan), *(f"note: {note}" for note in merged(notes))]
    parts: list[RenderableType] = [Text("\n".join(lines)), memory(plan)]
    if "bits_per_weight" in choice:
        parts.append(joint_report.types_of_experts(choice))
        parts += [joint_report.frontier_plot(plan.record.frontier)] if plan.record.frontier else []
    else:
        parts += type_tables(choice) if "types" in choice else []
        parts += [frontier(plan)] if plan.record.frontier else []
    parts.append(widths(plan))
    if plan.files:
        rows = [(name, f"{size:,}", format_size(size)) for name, size in plan.files.items()]
        parts.append(table("Files (exact)", ("file", "bytes", "size"), rows))
    return Group(*parts)
