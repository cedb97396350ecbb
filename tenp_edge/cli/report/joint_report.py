"""What people see of a plan that chose widths and types together: what the RAM buys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from tenp_edge.cli.report.rich_tables import bar, table
from tenp_edge.evaluation.verdict import expected
from tenp_edge.units import format_size, percent

_CELLS = 20


def what_it_buys(choice: Mapping[str, Any], keep_ratio: float, nbytes: int) -> str:
    """One sentence of the plan, one of the uncut model in as many bytes."""
    cut = "whole" if keep_ratio == 1 else f"pruned to {percent(keep_ratio)}"
    bits, kl = choice["bits_per_weight"], choice["kl"]
    said = (
        f"{format_size(nbytes)} buy the experts {cut}, {_mostly(choice['types'])} "
        f"({bits:.1f} bits a weight); expected difference: {expected(kl)} (KL about {kl:.2g})"
    )
    if keep_ratio == 1:
        return said
    return f"{said}. {the_whole_model(choice['whole'])}"


def the_whole_model(whole: Mapping[str, Any] | None) -> str:
    """What as many bytes would buy without a cut."""
    if whole is None:
        return "The whole model does not fit in any type"
    kl = whole["predicted_kl"]
    return (
        f"The whole model at this size would be {whole['quant']} "
        f"({whole['bits_per_weight']:.1f} bits); expected difference: {expected(kl)} "
        f"(KL about {kl:.2g})"
    )


def _mostly(types: Mapping[str, float]) -> str:
    """The type with the most bytes, or two where it has less than half."""
    names = list(types)
    if len(names) == 1:
        return f"all {names[0]}"
    return f"mostly {' and '.join(names[: 1 if types[names[0]] >= 0.5 else 2])}"


def frontier_plot(points: Sequence[Mapping[str, Any]]) -> Table:
    """What other RAM numbers buy, drawn: the longer the bar, the more is lost (logarithmic)."""
    points = _distinct(points)
    logs = [math.log(max(point["predicted_kl"], 1e-9)) for point in points]
    least, most = min(logs), max(logs)
    rows = [
        (
            format_size(point["total_bytes"]),
            percent(point["keep_ratio"]),
            f"{point['bits_per_weight']:.1f}",
            f"{point['predicted_kl']:.2g}",
            bar(0.05 + 0.95 * (value - least) / max(most - least, 1e-9), _CELLS),
            expected(point["predicted_kl"]),
            "<- chosen" if point["chosen"] else "",
        )
        for point, value in zip(points, logs, strict=True)
    ]
    columns = ("RAM", "neurons kept", "bits", "KL", "expected difference", "", "")
    return table("What other RAM numbers buy (predicted)", columns, rows)


def _distinct(points: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Points that are shown as one are one: above the whole model's size more RAM buys nothing."""
    rows: dict[tuple[object, ...], Mapping[str, Any]] = {}
    for point in points:
        key = tuple(value for name, value in point.items() if name != "chosen")
        if key not in rows or point["chosen"]:
            rows[key] = point
    return list(rows.values())


def types_of_experts(choice: Mapping[str, Any]) -> Table:
    """The types of the experts, by their share of the bytes."""
    rows = [(name, bar(share, _CELLS), percent(share)) for name, share in choice["types"].items()]
    return table("Types of the experts", ("type", "share of their bytes", ""), rows)
