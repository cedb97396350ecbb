"""Write docs/results.md from docs/results/template.md and the records beside it, and the guide's
table of models that fit.

    python docs/make_results.py

A test compares the page with `render()`. In the template `{{table RECORD.TABLE}}` stands for a
table (several names: their rows in one), `{{command RECORD}}` for the command that made it, and
`{{NAME}}` for a function of `FACTS`: what the prose says of the numbers is counted here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from bench_default import ALLOWED
from records import Record, Table, load

from tenp_edge.evaluation.comparison.table import rank_correlation

HERE = Path(__file__).parent
Records = Mapping[str, Record]
Rows = list[Mapping[str, Any]]
_DIRECTIVE = re.compile(r"\{\{(\w+) ?([^}]*)\}\}")
_MARKED = re.compile(r"<!-- (\{\{[^}]*\}\}) -->\n.*?<!-- end -->", re.DOTALL)
REFERENCES = ("qwen3_moe", "qwen2_moe", "deepseek_v3")


def render() -> str:
    """The page."""
    template = (HERE / "results" / "template.md").read_text(encoding="utf-8")
    return _DIRECTIVE.sub(partial(_filled, _records()), template)


def render_guide() -> str:
    """docs/guide.md with the tables between its marks made again."""
    fill = partial(_DIRECTIVE.sub, partial(_filled, _records()))
    guide = (HERE / "guide.md").read_text(encoding="utf-8")
    return _MARKED.sub(lambda mark: f"<!-- {mark[1]} -->\n\n{fill(mark[1])}\n\n<!-- end -->", guide)


def _records() -> Records:
    return {file.stem: load(file) for file in sorted((HERE / "results").glob("*.json"))}


def _filled(records: Records, directive: re.Match[str]) -> str:
    name, arguments = directive[1], directive[2].split()
    if name == "table":
        return _table(records, arguments)
    if name == "command":
        return records[arguments[0]].command
    return FACTS[name](records)


def _table(records: Records, names: list[str]) -> str:
    """The rows of all ``names`` in one table; under it when and where each was measured."""
    parts = [name.partition(".") for name in names]
    tables = [records[record].tables[table] for record, _, table in parts]
    if any(table.columns != tables[0].columns for table in tables):
        raise ValueError(f"the columns of {names} differ")
    whole = Table(tables[0].columns, [row for table in tables for row in table.rows])
    said = dict.fromkeys(_measured(records[record]) for record, _, _ in parts)
    return "\n\n".join([str(whole), *filter(None, said)])


def _measured(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    known = "; ".join(filter(None, (record.date, record.machine, versions)))
    return f"Measured: {known}." if known else ""


# -- what the prose counts -------------------------------------------------------------------------


def _default(records: Records) -> Rows:
    """The cells of "The default beside its rivals"; ``cut``: the default, not repaired."""
    found = [record for name, record in records.items() if name.startswith("default-")]
    return [row for record in found for row in record.tables["cells"].rows]


def _count(rows: Rows, holds: Callable[[Mapping[str, Any]], bool]) -> str:
    return f"{sum(map(holds, rows))} of {len(rows)}"


def _range(values: list[float], form: str) -> str:
    return f"{form.format(min(values))} to {form.format(max(values))}"


def default_below_rival(records: Records) -> str:
    return _count(_default(records), lambda row: row["default"] < row["rival_kl"])


def default_below_cut(records: Records) -> str:
    return _count(_default(records), lambda row: row["default"] < row["cut"])


def default_not_below(records: Records) -> str:
    """KL where the default is not below the best rival."""
    rows = [row for row in _default(records) if row["default"] >= row["rival_kl"]]
    return " and ".join(f"{row['default']:.6f}" for row in rows)


def cut_within(records: Records) -> str:
    return _count(_default(records), lambda row: row["ratio"] <= ALLOWED)


def cut_best(records: Records) -> str:
    return f"{1 - min(row['ratio'] for row in _default(records)):.0%}".replace("%", " %")


def cut_above_at_09(records: Records) -> str:
    return _count([row for row in _default(records) if row["ratio"] > ALLOWED], _mildest)


def _mildest(row: Mapping[str, Any]) -> bool:
    return bool(row["keep"] == 0.9)


def cut_above_elsewhere(records: Records) -> str:
    """The ratios above what is allowed where more than a tenth is cut."""
    rows = [row for row in _default(records) if row["ratio"] > ALLOWED and not _mildest(row)]
    return ", ".join(f"{row['ratio']:.2f} ({row['rival']}, at {row['keep']:g})" for row in rows)


def mixed_like_named(records: Records, share: float = 0.07) -> str:
    """Cells in which one mixed file and named files give nearly the same KL, not repaired."""
    by_text: dict[str, Rows] = {}
    for row in _default(records):
        by_text.setdefault(row["calibrated_on"], []).append(row)
    mixed, named = (by_text[f"all kinds, {how}"] for how in ("one file", "named"))
    pairs = zip(mixed, named, strict=True)
    near = [abs(a["cut"] / b["cut"] - 1) <= share for a, b in pairs]
    return f"{sum(near)} of {len(near)}"


def _with_other_text(records: Records) -> Rows:
    return [row for row in _default(records) if row["other_cut"] is not None]


def other_text_repaired(records: Records) -> str:
    rows = _with_other_text(records)
    saved = [100 * (1 - row["other_default"] / row["other_cut"]) for row in rows]
    return f"{_range(saved, '{:.0f} %')} off, in {_count(rows, _better_on_other_text)} cells"


def _better_on_other_text(row: Mapping[str, Any]) -> bool:
    return bool(row["other_default"] < row["other_cut"])


def protection_factor(records: Records) -> str:
    return _range([row["much"] / row["cut"] for row in _default(records)], "{:.3g}")


def protection_saves(records: Records) -> str:
    """Of the KL on other text, for the reference models."""
    rows = [row for row in _with_other_text(records) if row["model"] != "bundled"]
    saved = [100 * (1 - row["other_much"] / row["other_cut"]) for row in rows]
    less = [share for share in saved if share > 0]
    return f"{_range(less, '{:.0f} %')} off in {len(less)} of {len(rows)} cells"


def removal_factor(records: Records) -> str:
    return _range([row["removed"] / row["cut"] for row in _default(records)], "{:.0f}")


def types_correlation(records: Records) -> str:
    pairs = list(_type_cells(records["types"].tables["types"]))
    measured, predicted = (torch.tensor(values) for values in zip(*pairs, strict=True))
    return f"over the {len(pairs)} cells is {rank_correlation(predicted, measured):.2f}"


def _type_cells(table: Table) -> Iterator[tuple[float, float]]:
    for row in table.rows:
        for key, predicted in row.items():
            if key.endswith(" predicted"):
                yield row[key.removesuffix(" predicted")], predicted


# -- tables of other tables' numbers ---------------------------------------------------------------

_MAIN = {
    "adaptive": "adaptive, the default",
    "layer-energy": "energies sorted in each layer",
    "global-heapr-sum": "HEAPr weighted by use (a backward pass)",
    "global-heapr": "HEAPr (a backward pass), global sort",
    "free": "own widths by energy (`--method free`)",
    "tenp-chosen": "TENP, alpha and slope by predicted loss",
    "tenp": "TENP as published",
    "enp": "ENP, uniform width",
    "drop-easy-ep": "experts removed: EASY-EP",
    "drop-reap": "experts removed: REAP",
    "random": "random neurons",
}


def main_methods(records: Records) -> str:
    """The methods that a reader looks for, of all that were run on the references."""
    measured = {row["method"]: row for row in records["references"].tables["table"].rows}
    cells = [(name, f"{{{name} 0.6:nats}} / {{{name} 0.45:nats}}") for name in REFERENCES]
    table = Table([("method", "{label}"), *cells])
    for method, label in _MAIN.items():
        means = {key: _mean(value) for key, value in measured[method].items()}
        table.add({**means, "label": label})
    return str(table)


def _mean(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


# -- at equal bytes --------------------------------------------------------------------------------


def _matched(records: Records, table: str = "kl") -> Rows:
    """Of the calibrated kinds of text, or of the "other" ones."""
    found = [record for name, record in records.items() if name.startswith("matched-")]
    tables = [record.tables[table] for record in found if table in record.tables]
    return [row for one in tables for row in one.rows if row.get("joint")]


def _bars(rows: Rows) -> list[tuple[Mapping[str, Any], str, str]]:
    """(row, the ratio's key, its mark), of every bar that was judged."""
    pairs = (("of_whole", "whole_mark"), ("of_pruned", "pruned_mark"))
    return [(row, key, row[mark]) for row in rows for key, mark in pairs if key in row]


def _held(rows: Rows) -> str:
    judged = _bars(rows)
    return f"{sum(not mark for _, _, mark in judged)} of {len(judged)}"


def joint_held(records: Records) -> str:
    return _held(_matched(records))


def joint_held_elsewhere(records: Records) -> str:
    return _held(_matched(records, "other"))


def joint_missed_where_it_fits(records: Records) -> str:
    """How many bars are missed at the bytes of Q6_K, and by how much."""
    rows = [*_matched(records), *_matched(records, "other")]
    found = [row[key] for row, key, mark in _bars(rows) if mark and _fits(row)]
    return f"{len(found)} ({_range(found, '{:.2f}')})"


def joint_missed(records: Records) -> str:
    """A table of the bars that are missed at the other sizes."""
    columns = (
        ("model", "{model}"),
        ("calibrated on", "{calibrated_on}"),
        ("judged on", "{judged_on}"),
        ("bytes of the whole model in", "{budget}"),
        ("KL of joint", "{joint:.3g}"),
        ("of that of", "{rival}"),
        ("is", "{ratio:.2f}{mark}"),
    )
    table = Table(columns)
    for judged_on, name in (("the calibrated kinds", "kl"), ("the others", "other")):
        for row, key, mark in _bars(_matched(records, name)):
            if mark and not _fits(row):
                rival = "the whole model" if key == "of_whole" else "one type, pruned"
                said = {"judged_on": judged_on, "rival": rival, "ratio": row[key], "mark": mark}
                table.add({**row, **said})
    return str(table)


def _fits(row: Mapping[str, Any]) -> bool:
    """Whether the whole model fits in the most precise type, or nearly."""
    return "Q6_K" in row["budget"]


def joint_of_whole_elsewhere(records: Records) -> str:
    """Where the whole model does not fit in the most precise type."""
    rows = [row for row in _matched(records, "other") if not _fits(row)]
    return _range([row["of_whole"] for row in rows], "{:.2f}")


def joint_smol_package(records: Records) -> str:
    """Of the whole model's KL, on real weights after the text that everybody has."""
    rows = [row for row in _matched(records) if row["model"] == "smollm2"]
    here = (row for row in rows if row["calibrated_on"] == "the text in the package")
    *most, last = (f"{row['of_whole']:.2f}" for row in here)
    return f"{', '.join(most)} and {last}"


def joint_of_whole(records: Records) -> str:
    return _range([row["of_whole"] for row in _cut(records)], "{:.2f}")


def joint_of_pruned(records: Records) -> str:
    return _range([row["of_pruned"] for row in _cut(records) if "of_pruned" in row], "{:.2f}")


def removal_of_joint(records: Records) -> str:
    """The better way to remove whole experts."""
    rows = [row for row in _cut(records) if row["reap"] and row["easy_ep"]]
    least, _, most = _range(
        [min(row["reap"], row["easy_ep"]) / row["joint"] for row in rows], "{:.1f}"
    ).partition(" to ")
    return f"{least} to {float(most):.0f} times"


def own_of_whole(records: Records) -> str:
    return _range([row["own"] / row["whole"] for row in _cut(records) if row["own"]], "{:.2f}")


def joint_of_bound(records: Records) -> str:
    return _range(
        [row["joint"] / row["bound"] for row in _cut(records) if "bound" in row], "{:.0f}"
    )


def _cut(records: Records) -> Rows:
    """Where the whole model does not fit in the most precise type."""
    return [row for row in _matched(records) if not _fits(row)]


FACTS: Mapping[str, Callable[[Records], str]] = {
    function.__name__: function
    for function in (
        default_below_rival,
        default_below_cut,
        default_not_below,
        cut_within,
        cut_best,
        cut_above_at_09,
        cut_above_elsewhere,
        mixed_like_named,
        other_text_repaired,
        protection_factor,
        protection_saves,
        removal_factor,
        types_correlation,
        joint_held,
        joint_missed,
        joint_held_elsewhere,
        joint_missed_where_it_fits,
        joint_of_whole_elsewhere,
        joint_smol_package,
        joint_of_whole,
        joint_of_pruned,
        joint_of_bound,
        own_of_whole,
        removal_of_joint,
        main_methods,
    )
}

if __name__ == "__main__":
    (HERE / "results.md").write_text(render(), encoding="utf-8")
    (HERE / "guide.md").write_text(render_guide(), encoding="utf-8")
