"""What people see of a comparison: a table a size, and what the methods' names mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

from tenp_edge.cli.report.entries import Entries
from tenp_edge.cli.report.rich_tables import table
from tenp_edge.evaluation.comparison.names import explained
from tenp_edge.units import format_size, nats, percent

if TYPE_CHECKING:  # torch takes a second to load, and some verbs never need it
    from tenp_edge.evaluation.comparison.table import Line, Prediction
    from tenp_edge.evaluation.matched.table import Section

# Bytes that differ by rounding alone are equal.
_EQUAL = 0.01
_WORDS = (
    "KL: how far the predictions are from the whole model's, 0 is not at all. active: share of the "
    "experts' width that a token meets. perplexity: that of the cut model over that of the whole. "
    "rank correlation: 1 where predicted losses order the plans as measured KL does"
)


def comparison(lines: Sequence[Line], predicted: Sequence[Prediction] = ()) -> Group:
    """One table a keep ratio: methods by KL, bytes, active width, and KL by kind of text; then how
    well predicted losses ranked the plans."""
    ratios = dict.fromkeys(line.keep for line in lines)
    parts = [_of_ratio([line for line in lines if line.keep == keep]) for keep in ratios]
    if predicted:
        rows = [
            ("all" if p.keep is None else f"{p.keep:g}", p.plans, f"{p.rank_correlation:.3f}")
            for p in predicted
        ]
        title = "Predicted loss against measured KL"
        parts.append(table(title, ["keep", "plans", "rank correlation"], rows))
    return Group(*parts)


def _of_ratio(lines: Sequence[Line]) -> Table:
    domains, tasks = list(lines[0].kl_by_domain), list(lines[0].tasks)
    columns = ["method", "experts' bytes", "active", "KL", "perplexity", "same first token"]
    usual = _usual_bytes(lines)
    rows = [
        (
            line.method,
            format_size(line.expert_bytes) + _mark(line, usual),
            "" if line.active_ratio is None else percent(line.active_ratio),
            line.kl,
            f"{line.perplexity_ratio.mean:.3f}",
            percent(line.same_top.mean),
            *(nats(line.kl_by_domain[domain].mean) for domain in domains),
            *(percent(line.tasks[task].mean) for task in tasks),
        )
        for line in lines
    ]
    title = f"keep {lines[0].keep:g}: {percent(lines[0].kept)} of the experts' parameters stay"
    titles = [f"KL {domain}" for domain in domains] + [task.split("_")[0] for task in tasks]
    return table(title, [*columns, *titles], rows)


def _usual_bytes(lines: Sequence[Line]) -> int:
    return Counter(line.expert_bytes for line in lines).most_common(1)[0][0]


def _mark(line: Line, usual: int) -> str:
    """A star where a method takes other bytes than the rest: it is not at equal bytes."""
    return "" if abs(line.expert_bytes - usual) <= _EQUAL * usual else " *"


def legend(lines: Sequence[Line], output: Path) -> Entries:
    """The names and the headings of the tables in words."""
    methods = dict.fromkeys(line.method for line in lines)
    said = [("words", _WORDS), *(("", f"{name}: {explained(name)}") for name in methods)]
    if any(_mark(line, _usual_bytes(lines)) for line in lines):
        said.append(("*", "not at equal bytes: this method cannot cut to the others' size"))
    return Entries([*said, _more(output / "compare.html")])


def _more(page: Path) -> tuple[str, str]:
    return "more", f"{page} in a browser; --json, and the JSON beside it, have every number"


def matched(sections: Sequence[Section]) -> Group:
    """One table a budget: the ways to spend it, what they are, the file as it runs."""
    return Group(*(table(one.title, one.headings, one.rows) for one in sections))


def matched_legend(output: Path) -> Entries:
    said = [
        ("words", _WORDS.partition(" active:")[0]),
        ("", "ppl ratio: perplexity of the cut model over that of the whole"),
        ("", "same top: places where both put the same token first. *: the least KL of that size"),
        ("", "bars: what the project asks of itself, at most so much of the KL of the row beside"),
        _more(output / "matched.html"),
    ]
    return Entries(said)
