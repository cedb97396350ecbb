"""The rows of a matched comparison as tables of text; the least KL of a budget has a star."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenp_edge.checkpoint.tensor_types import AUTO
from tenp_edge.evaluation.comparison.table import Spread
from tenp_edge.evaluation.matched.bars import JOINT, Bar, bars
from tenp_edge.units import format_size

_TASKS = {"cloze_accuracy": "cloze", "arithmetic_exact_answers": "sums"}
_RUN = {
    "prefill_tokens_per_second": "prefill t/s",
    "decode_tokens_per_second": "decode t/s",
    "peak_rss_bytes": "peak RSS",
}


@dataclass(frozen=True)
class Line:
    """One way at one budget, over the calibrations. ``what``: its type, and what of the neurons
    is kept; ``tasks`` and ``run``: by heading, as text; ``best``: the least KL of its budget."""

    budget: str
    budget_bytes: int
    way: str
    what: str
    file_bytes: int
    kl: Spread
    perplexity_ratio: Spread
    same_top: Spread
    tasks: Mapping[str, str]
    run: Mapping[str, str]
    best: bool = False


def lines(result: Mapping[str, Any]) -> list[Line]:
    """Every way at every budget, the largest first."""
    able = {name for name, value in result["scores"]["dense"]["overall"].items() if value}
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["budget_bytes"], row["way"]), []).append(row)
    return list(_marked([_line(rows, able) for rows in groups.values()]))


def _marked(made: Sequence[Line]) -> Iterator[Line]:
    least: dict[int, float] = {}
    for line in made:
        least[line.budget_bytes] = min(least.get(line.budget_bytes, line.kl.mean), line.kl.mean)
    for line in made:
        yield Line(**{**vars(line), "best": line.kl.mean == least[line.budget_bytes]})


def _line(rows: Sequence[Mapping[str, Any]], able: set[str]) -> Line:
    first = rows[0]

    def overall(name: str) -> Spread:
        return Spread.of(row["overall"][name] for row in rows)

    tasks = [name for name in _TASKS if name in first["overall"] and name in able]
    return Line(
        budget=" = ".join(first["budget"]),
        budget_bytes=first["budget_bytes"],
        way=first["way"],
        what=_what(first),
        file_bytes=first["file_bytes"],
        kl=overall("mean_kl"),
        perplexity_ratio=overall("perplexity_ratio"),
        same_top=overall("same_top"),
        tasks={_TASKS[name]: f"{100 * overall(name).mean:.1f} %" for name in tasks},
        run=_run(first.get("run", {})),
    )


def _what(row: Mapping[str, Any]) -> str:
    kept = "whole" if row["kept"] == 1 else f"{100 * row['kept']:.0f} %"
    quant, common = row["quant"], row["commonest_type"]
    if quant == AUTO:
        return f"{row['type_count']} types, mostly {common}, {kept}"
    # Rows that the type's blocks do not fill have another.
    return f"{quant}, {kept}" if quant.startswith(common) else f"{quant} ({common}), {kept}"


def _run(run: Mapping[str, Any]) -> dict[str, str]:
    shown = {}
    for key, heading in _RUN.items():
        if key in run:
            value = run[key]
            shown[heading] = format_size(value) if key.endswith("bytes") else f"{value:.0f}"
    return shown


@dataclass(frozen=True)
class Section:
    """A table of text."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        lines = [self.headings, ["---"] * len(self.headings), *self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"## {self.title}\n\n{table}\n"


def sections(result: Mapping[str, Any]) -> list[Section]:
    """A section a budget, and the bars where there is something to judge."""
    made, parts = lines(result), []
    for size in dict.fromkeys(line.budget_bytes for line in made):
        chosen = [line for line in made if line.budget_bytes == size]
        title = f"{format_size(size)}: the whole model in {chosen[0].budget}"
        head = ["row", "types and neurons", "file", "KL", "ppl ratio", "same top"]
        head += [*chosen[0].tasks, *chosen[0].run]
        parts.append(Section(title, head, [_cells(line) for line in chosen]))
    judged = [bar for way in (JOINT, f"{JOINT}+repair") for bar in bars(result, way)]
    if judged:
        head = ["budget", "row", "KL beside", "ratio", "at most", ""]
        parts.append(Section("Bars", head, [_bar_cells(bar) for bar in judged]))
    return parts


def markdown(result: Mapping[str, Any]) -> str:
    """All sections as a page."""
    return "\n".join(section.markdown() for section in sections(result))


def _cells(line: Line) -> tuple[str, ...]:
    return (
        line.way,
        line.what,
        format_size(line.file_bytes),
        f"{line.kl}{' *' if line.best else ''}",
        f"{line.perplexity_ratio.mean:.4f}",
        f"{100 * line.same_top.mean:.1f} %",
        *line.tasks.values(),
        *line.run.values(),
    )


def _bar_cells(bar: Bar) -> tuple[str, ...]:
    verdict = "held" if bar.held else "missed"
    return (bar.budget, bar.way, bar.rival, f"{bar.ratio:.3f}", f"{bar.limit:g}", verdict)
