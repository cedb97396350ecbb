"""What the memory is spent on, what was predicted and what was measured, and what other sizes
would buy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from tenp_edge.checkpoint.plan_record import record_of
from tenp_edge.evaluation.verdict import expected
from tenp_edge.pages import plot
from tenp_edge.pages.document import Section, figure, missing, paragraph, table
from tenp_edge.pages.levels import bands
from tenp_edge.pages.markup import Child, joined, tag
from tenp_edge.pages.run_files import RunFiles
from tenp_edge.pages.run_head import file_bytes
from tenp_edge.pages.svg import Piece, stacked, swatch
from tenp_edge.planning.measured.expected_kl import expected_kl
from tenp_edge.planning.options.devices import device_words
from tenp_edge.units import format_size, nats

_PARTS = (
    ("experts_bytes", "routed experts", "the neurons that stay"),
    ("other_weights_bytes", "other weights", "attention, embeddings, router"),
    ("kv_bytes", "KV cache", "what attention remembers of the context"),
    ("compute_bytes", "compute buffers", "intermediate results"),
    ("overhead_bytes", "process, vocabulary", "the program itself"),
)


def memory(run: RunFiles) -> Section:
    """The parts of the predicted peak, beside the budget."""
    sizes, budget = run.memory, run.record.get("budget_bytes")
    parts = [
        (f"p{number}", name, what, sizes[key])
        for number, (key, name, what) in enumerate(_PARTS)
        if key in sizes
    ]
    total = sizes["total_bytes"]
    most = max(total, budget or 0) * (1.02 if budget else 1.0)
    pieces = [Piece(size, kind, f"{name}: {format_size(size)}") for kind, name, _, size in parts]
    rows: list[Sequence[Child]] = [
        ((swatch(kind), name), what, format_size(size), f"{100 * size / total:.1f} %")
        for kind, name, what, size in parts
    ]
    rows.append(("predicted peak", "", format_size(total), "100 %"))
    if budget:
        left = budget - total
        share = f"{100 * abs(left) / total:.1f} %"
        rows.append(("free" if left >= 0 else "too much", "", format_size(abs(left)), share))
        rows.append(("budget", "", format_size(budget), ""))
    counted = "by a rule" if sizes.get("source") == "estimate" else "by the runtime itself"
    drawn = joined((stacked(pieces, most, budget), paragraph(_run(run), kind="about")))
    columns = ("part", "what it is", "size", "share")
    body = (drawn, table("Memory by part", columns, rows, extra=(1,)))
    about = f"The peak memory of the running program, counted {counted}. " + (
        "The line across the bar is the budget." if budget else ""
    )
    return Section("memory", "What the memory is spent on", about, joined(body))


def _run(run: RunFiles) -> str:
    sizes, where = run.memory, device_words(run.memory["device"])
    return (
        f"A run of {sizes['context']:,} tokens of context on {where}, KV cache in "
        f"{sizes['kv_type']}, {sizes['ubatch']} tokens at a time."
    )


# -- predicted against measured --------------------------------------------------------------------


def predictions(run: RunFiles) -> Section:
    """Every number that was said before and measured after."""
    rows = list(_predictions(run))
    body = table("Predicted against measured", ("", "predicted", "measured", "ratio"), rows)
    about = (
        "What the plan promised before a weight was written, and what came out. In brackets: where "
        "the KL lies in nine cases of ten."
    )
    return Section("predictions", "Predicted against measured", about, body)


def _predictions(run: RunFiles) -> Iterator[Sequence[Child]]:
    size, measured = run.memory["total_bytes"], run.measured_bytes
    yield _pair("peak memory", size, measured, format_size)
    yield _pair("file", file_bytes(run), _written(run), format_size)
    whole, checked = expected_kl(record_of(run.record), run.plan["keep_ratio"]), run.validation
    if whole is not None:
        overall = None if checked is None else checked["overall"]["mean_kl"]
        name, predicted, *rest = _pair("mean KL, nats", whole.kl, overall, nats)
        yield name, (predicted, _between(whole.range)), *rest
        yield from _by_stage(run.record, checked)


def _between(found: tuple[float, float] | None) -> Child:
    """ " (0.002 to 0.015)": where it lies in nine cases of ten; earlier plans do not say. A phone
    has no room for it."""
    if not found:
        return None
    return tag("span", f" ({nats(found[0])} to {nats(found[1])})", class_="extra")


def _by_stage(
    record: Mapping[str, Any], checked: Mapping[str, Any] | None
) -> Iterator[Sequence[str]]:
    """The losses of pruning and of types, which the plan predicts each alone."""
    added = {loss["stage"]: loss["added_kl"] for loss in (checked or {}).get("losses", ())}
    named = (("pruning", "predicted_kl"), ("quantisation", "type_kl"))
    for stage, key in named:
        if record.get(key) is not None and record.get("type_kl") is not None:
            yield _pair(f"KL of {stage} alone", record[key], added.get(stage), nats)


def _pair(name: str, predicted: float, measured: float | None, write: Any) -> Sequence[str]:
    if measured is None:
        return name, write(predicted), "not measured", ""
    ratio = "" if not predicted else f"{measured / predicted:.3f}"
    return name, write(predicted), write(measured), ratio


def _written(run: RunFiles) -> int | None:
    """Bytes of the exported files as they lie on the disk, None where the run did not record it."""
    files = ((run.manifest or {}).get("stages", {}).get("export") or {}).get("files", {})
    return sum(entry["bytes"] for entry in files.values()) or None


# -- the frontier ----------------------------------------------------------------------------------


def frontier(run: RunFiles) -> Section:
    """RAM against expected loss: the plan's own sizes, and the whole model in other types."""
    title = "What other sizes would buy"
    points = [point for point in run.record.get("frontier", ()) if "predicted_kl" in point]
    if not points:
        text = "The plan has no other sizes: its neurons were not ranked by a measured loss."
        return Section("frontier", title, "", missing(text))
    points = sorted(points, key=lambda point: point["total_bytes"])
    wholes = _wholes(run)
    about = (
        "Memory against the loss that is expected, in nats per token; lower is better. The words "
        "are those of the verdict, by KL alone. +1 after a type: one more comes to the same, and "
        "the numbers name it."
    )
    drawn = _frontier_plot(run, points, wholes)
    return Section(
        "frontier",
        title,
        about,
        figure(drawn.render(), _frontier_legend(wholes), _frontier_table(points, wholes)),
    )


def _wholes(run: RunFiles) -> Sequence[Mapping[str, Any]]:
    """The uncut model in one type or mix each; types that come to the same are one, ``same``
    counts the others."""
    groups: dict[tuple[int, float], list[Mapping[str, Any]]] = {}
    for one in (run.record.get("type_choice") or {}).get("wholes", ()):
        groups.setdefault((one["total_bytes"], one["predicted_kl"]), []).append(one)
    return [
        {**same[0], "quant": ", ".join(one["quant"] for one in same), "same": len(same) - 1}
        for same in groups.values()
    ]


def _frontier_plot(
    run: RunFiles, points: Sequence[Mapping[str, Any]], wholes: Sequence[Mapping[str, Any]]
) -> plot.Plot:
    every = [*points, *wholes]
    sizes = [_unit(run) * point["total_bytes"] for point in every]
    # A loss of 0 has no place on this axis: it is drawn below all others.
    least = min((point["predicted_kl"] for point in every if point["predicted_kl"] > 0), default=1)
    losses = [max(point["predicted_kl"], least / 3) for point in every]
    unit = "GiB" if _unit(run) == 2**-30 else "MiB"
    budget = run.record.get("budget_bytes")
    limit = [_unit(run) * budget] if budget else []
    drawn = [_point(run, *pair) for pair in zip(every, losses, strict=True)]
    own = plot.Series("this plan's method", drawn[: len(points)])
    whole = plot.Series("the whole model", drawn[len(points) :], 1, line=False)
    return plot.Plot(
        "Memory against expected loss",
        f"{len(points)} sizes of this plan and {len(wholes)} types of the whole model; the table "
        "below has the numbers.",
        plot.linear_axis(f"peak memory, {unit}", [*sizes, *limit]),
        plot.log_axis("expected KL, nats per token", losses),
        [own, whole] if wholes else [own],
        bands(),
        (limit[0], "budget") if limit else None,
    )


def _unit(run: RunFiles) -> float:
    return float(2**-30 if run.memory["total_bytes"] > 2**31 else 2**-20)


def _point(run: RunFiles, point: Mapping[str, Any], kl: float) -> plot.Point:
    chosen, quant = bool(point.get("chosen")), point.get("quant")
    keep = f"{100 * point.get('keep_ratio', 1.0):.0f} %"
    size = point["total_bytes"]
    said = f"{format_size(size)}, {keep} of the neurons, KL {nats(point['predicted_kl'])}"
    label = "chosen" if chosen else ""
    if quant is not None:
        label = quant.partition(",")[0] + (f" +{point['same']}" if point["same"] else "")
    elif not point["predicted_kl"]:
        label = "no loss"
    return plot.Point(_unit(run) * size, kl, label, f"{quant}: {said}" if quant else said, chosen)


def _frontier_legend(wholes: Sequence[Mapping[str, Any]]) -> Markup:
    names = [("widths and types chosen for the size", 0)]
    return plot.legend([*names, *([("the whole model in one type", 1)] if wholes else [])])


def _frontier_table(
    points: Sequence[Mapping[str, Any]], wholes: Sequence[Mapping[str, Any]]
) -> Markup:
    listed = sorted([*points, *wholes], key=lambda point: point["total_bytes"])
    rows = [
        (
            format_size(point["total_bytes"]),
            point.get("quant") or ("chosen" if point.get("chosen") else ""),
            f"{100 * point.get('keep_ratio', 1.0):.1f} %",
            f"{point['bits_per_weight']:.2f}" if "bits_per_weight" in point else "",
            nats(point["predicted_kl"]),
            expected(point["predicted_kl"]),
        )
        for point in listed
    ]
    marked = [number for number, point in enumerate(listed) if point.get("chosen")]
    columns = ("memory", "", "neurons kept", "bits a weight", "expected KL", "difference")
    return table("Sizes", columns, rows, words=(1, 5), marked=marked)
