"""compare.html and matched.html: the tables of a comparison as one self-contained page."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tenp_edge.disk import write_text
from tenp_edge.evaluation.comparison import table as by_share
from tenp_edge.evaluation.comparison.names import explained
from tenp_edge.evaluation.comparison.plot import shown
from tenp_edge.evaluation.comparison.table import Spread
from tenp_edge.evaluation.matched import table as by_bytes
from tenp_edge.evaluation.matched.bars import JOINT, bars
from tenp_edge.evaluation.matched.ways import WAYS
from tenp_edge.evaluation.verdict import expected
from tenp_edge.pages import plot
from tenp_edge.pages.document import Section, document, figure, paragraph, table
from tenp_edge.pages.levels import bands
from tenp_edge.pages.markup import Child, joined, tag
from tenp_edge.pages.svg import bar
from tenp_edge.units import format_size, nats

FILE, MATCHED = "compare.html", "matched.html"
_ABOUT_KL = (
    "Mean KL divergence to the whole model, in nats per token: 0 is equal. Whiskers and ± are the "
    "range over the calibration seeds; the bars are logarithmic."
)
_LEAST = 1e-7  # what a logarithm is taken of


def write_comparison(directory: Path, model: str, result: Mapping[str, Any]) -> Path:
    """The page of `compare`'s ``result``, on ``model``, in ``directory``."""
    return _write(directory / FILE, f"{model}: methods at equal bytes", _shares(model, result))


def write_matched(directory: Path, model: str, result: Mapping[str, Any]) -> Path:
    """The page of `compare --matched`'s ``result``, on ``model``, in ``directory``."""
    return _write(directory / MATCHED, f"{model}: files of equal size", _sizes(model, result))


def _write(target: Path, title: str, parts: tuple[Markup, Sequence[Section]]) -> Path:
    write_text(target, document(title, *parts))
    return target


def _head(headline: str, lead: str) -> Markup:
    return joined(
        (
            paragraph(tag("b", "tenp-edge"), " comparison", kind="eyebrow"),
            tag("h1", headline),
            paragraph(lead, kind="lead"),
        )
    )


class _Bars:
    """Bars of one table, logarithmic: losses differ by factors."""

    def __init__(self, every: Sequence[Spread]) -> None:
        self._least = max(min(kl.low for kl in every), _LEAST) / 2
        self._most = self._place(max(kl.high for kl in every))

    def __call__(self, kl: Spread, best: bool) -> Markup:
        spread = self._place(kl.low), self._place(kl.high)
        return bar(self._place(kl.mean), self._most, "p0" if best else "t1", spread)

    def _place(self, kl: float) -> float:
        return math.log(max(kl, self._least) / self._least)


def _names(meanings: Mapping[str, str]) -> Section:
    """What the rows are called, in words."""
    body = table("Names", ("name", "what it does"), list(meanings.items()), words=(1,))
    return Section("names", "What the names mean", "The rows of the tables above.", body)


def _about(about: Mapping[str, Any]) -> Section:
    """What was calibrated and measured on."""
    rows: list[Sequence[Child]] = []
    for name in ("calibration", "evaluation"):
        for key, value in (about.get(name) or {}).items():
            said = ", ".join(map(str, value)) if isinstance(value, list) else value
            rows.append((f"{name}: {key.replace('_', ' ')}", said or "text in the package"))
    body = table("Text", ("", ""), rows, words=(1,))
    return Section("about", "What it was measured on", "", body)


# -- methods at shares of the neurons --------------------------------------------------------------


def _shares(model: str, result: Mapping[str, Any]) -> tuple[Markup, Sequence[Section]]:
    lines = by_share.lines(result)
    ratios = list(dict.fromkeys(line.keep for line in lines))
    winners = [next(line for line in lines if line.keep == keep) for keep in ratios]
    said = "; ".join(f"{w.method} at {100 * w.kept:.0f} % ({nats(w.kl.mean)})" for w in winners)
    methods = len({line.method for line in lines})
    lead = f"Each row of a table keeps the same number of bytes. The least loss: {said}."
    head = _head(f"{methods} ways to cut {model}, at equal bytes", lead)
    curves = {
        name: [(100 * line.kept, line.kl) for line in lines if line.method == name]
        for name in shown(lines)
    }
    kept = "routed-expert parameters kept, %"
    sections = [_curves(kept, curves, "methods")] if len(ratios) > 1 else []
    sections += [_ratio([line for line in lines if line.keep == keep]) for keep in ratios]
    sections += list(_predicted(result))
    names = _names({line.method: explained(line.method) for line in lines})
    return head, [*sections, names, _about(result)]


def _curves(
    x_label: str, named: Mapping[str, Sequence[tuple[float, Spread]]], what: str
) -> Section:
    """A line for each of ``named``, through its (x, KL)."""
    every = [pair for pairs in named.values() for pair in pairs]

    def series(number: int, name: str) -> plot.Series:
        points = [
            plot.Point(x, max(kl.mean, _LEAST), title=f"{name}: {kl}")
            for x, kl in sorted(named[name], key=lambda pair: pair[0])
        ]
        return plot.Series(name, points, number, named=True)

    picture = plot.Plot(
        "Loss against size",
        f"{len(named)} {what}; the tables below have the numbers.",
        plot.linear_axis(x_label, [x for x, _ in every]),
        plot.log_axis("mean KL, nats per token", [max(kl.mean, _LEAST) for _, kl in every]),
        [series(*numbered) for numbered in enumerate(named)],
        bands(),
    )
    legend = plot.legend([(name, number) for number, name in enumerate(named)])
    about = "Lower is better."
    return Section("curves", "Loss against size", about, figure(picture.render(), legend))


def _ratio(lines: Sequence[by_share.Line]) -> Section:
    """One keep ratio, the least loss first."""
    first = lines[0]
    bars_of = _Bars([line.kl for line in lines])
    domains, tasks = list(first.kl_by_domain), list(first.tasks)
    columns = ["method", "", "mean KL", "difference", "same first token", "perplexity ratio"]
    columns += ["bytes", "active per token", *(f"KL, {domain}" for domain in domains)]
    columns += [task.split("_")[0] for task in tasks]
    rows = [
        (
            line.method,
            bars_of(line.kl, line is first),
            str(line.kl),
            expected(line.kl.mean),
            f"{100 * line.same_top.mean:.1f} %",
            f"{line.perplexity_ratio.mean:.3f}",
            format_size(line.expert_bytes),
            "" if line.active_ratio is None else f"{100 * line.active_ratio:.1f} %",
            *(str(line.kl_by_domain[domain]) for domain in domains),
            *(f"{100 * line.tasks[task].mean:.1f} %" for task in tasks),
        )
        for line in lines
    ]
    body = table(
        f"{100 * first.kept:.1f} % kept", columns, rows, words=(3,), bars=(1,), marked=(0,)
    )
    return Section(f"keep-{first.keep:g}", f"Keep {first.keep:g}", _ABOUT_KL, body, True)


def _predicted(result: Mapping[str, Any]) -> Iterator[Section]:
    found = by_share.predictions(result)
    if found:
        keeps = ["all" if one.keep is None else f"{one.keep:g}" for one in found]
        rows = [
            (keep, one.plans, f"{one.rank_correlation:.3f}")
            for keep, one in zip(keeps, found, strict=True)
        ]
        about = (
            "How well the losses that plans predict order what was measured: 1 is the same order."
        )
        columns = ("keep", "plans", "rank correlation")
        body = table("Predicted loss against measured KL", columns, rows)
        yield Section("predicted", "Predicted against measured", about, body)


# -- files of equal size ---------------------------------------------------------------------------


def _sizes(model: str, result: Mapping[str, Any]) -> tuple[Markup, Sequence[Section]]:
    lines = by_bytes.lines(result)
    sizes = list(dict.fromkeys(line.budget_bytes for line in lines))
    ways = len({line.way for line in lines})
    best = [line for line in lines if line.best]
    said = "; ".join(f"{one.way} in {format_size(one.budget_bytes)}" for one in best)
    lead = f"Every row of a table fills the same bytes. The least loss: {said}."
    head = _head(f"{ways} ways to fill a file with {model}", lead)
    curves = {
        way: [(line.budget_bytes / 2**20, line.kl) for line in lines if line.way == way]
        for way in dict.fromkeys(line.way for line in lines)
    }
    sections = [_curves("file, MiB", curves, "ways")] if len(sizes) > 1 else []
    sections += [_budget([one for one in lines if one.budget_bytes == size]) for size in sizes]
    names = _names({way.name: way.about for way in WAYS if way.name in curves})
    return head, [*sections, names, *_bars(result), _about(result.get("about", {}))]


def _budget(lines: Sequence[by_bytes.Line]) -> Section:
    """One number of bytes, in the order of the ways."""
    first, bars_of = lines[0], _Bars([line.kl for line in lines])
    columns = ["way", "", "mean KL", "difference", "types and neurons", "same first token"]
    columns += ["perplexity ratio", "file", *first.tasks, *first.run]
    rows = [
        (
            line.way,
            bars_of(line.kl, line.best),
            str(line.kl),
            expected(line.kl.mean) + (", the least" if line.best else ""),
            line.what,
            f"{100 * line.same_top.mean:.1f} %",
            f"{line.perplexity_ratio.mean:.4f}",
            format_size(line.file_bytes),
            *line.tasks.values(),
            *line.run.values(),
        )
        for line in lines
    ]
    size = format_size(first.budget_bytes)
    marked = [number for number, line in enumerate(lines) if line.best]
    body = table(f"{size} each", columns, rows, words=(3, 4), bars=(1,), marked=marked)
    about = f"As many bytes as the whole model in {first.budget}. {_ABOUT_KL}"
    return Section(f"bytes-{first.budget_bytes}", size, about, body, True)


def _bars(result: Mapping[str, Any]) -> Iterator[Section]:
    """What the chosen plans must reach."""
    judged = [one for way in (JOINT, f"{JOINT}+repair") for one in bars(result, way)]
    if judged:
        rows = [
            (
                one.budget,
                one.way,
                one.rival,
                f"{one.ratio:.3f}",
                f"{one.limit:g}",
                "held" if one.held else "missed",
            )
            for one in judged
        ]
        columns = ("budget", "way", "beside", "KL ratio", "at most", "")
        body = table("Bars", columns, rows, words=(1, 2, 5))
        about = "How much of another way's loss the search may have in as many bytes."
        yield Section("bars", "Bars", about, body)
