"""The record of a `tenp-edge compare`: what docs/results.md takes from its compare.json.

    tenp-edge compare demo --data stdlib --eval-data stdlib ... -o OUT
    python benchmarks/record_comparison.py demo=OUT --record FILE --command "tenp-edge compare ..."

A row a method, the best first. The columns for each ratio: `--show kl` (with the spread of the
calibrations), `quality` (KL, ratio of the perplexities, same first token) or `domains` (KL, and
that of each domain).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from records import Table, add_record_flag, write_record

from tenp_edge.evaluation.comparison.table import Line, Spread, lines


def mean_and_spread(spread: Spread) -> list[float]:
    """[mean, half the range], the mean alone where there is no range: the format `nats`."""
    half = (spread.high - spread.low) / 2
    return [spread.mean, half] if half else [spread.mean]


def side_by_side(results: Mapping[str, Mapping[str, Any]], show: str = "kl") -> Table:
    """Every method at every ratio of the comparisons ``results`` (by the name of the model), a
    column or more for each model and ratio; best mean (over the columns' logarithms) first."""
    by_method: dict[str, dict[tuple[str, float], Line]] = {}
    for name, result in results.items():
        for line in lines(result):
            by_method.setdefault(line.method, {})[name, line.keep] = line
    columns = list(dict.fromkeys(key for row in by_method.values() for key in row))
    columns.sort(key=lambda column: -column[1])

    def order(method: str) -> float:
        return sum(math.log(max(line.kl.mean, 1e-9)) for line in by_method[method].values())

    cells = [
        cell
        for name, keep in columns
        for cell in _cells(f"{name} {keep:g}", show, list(results[name]["evaluation"]["domains"]))
    ]
    table = Table([("method", "{method}"), *cells])
    for method in sorted(by_method, key=order):
        row: dict[str, Any] = {"method": method}
        for (name, keep), line in by_method[method].items():
            row |= _values(f"{name} {keep:g}", line)
        table.add(row)
    return table


def _cells(key: str, show: str, domains: Sequence[str]) -> list[tuple[str, str]]:
    kl = f"{{{key}:nats}}"
    if show == "kl":
        return [(key, kl)]
    if show == "domains":
        by_domain = ", ".join(f"{{{key} {domain}:nats}}" for domain in domains)
        return [(f"{key}: KL ({', '.join(domains)})", f"{kl} ({by_domain})")]
    return [
        (f"KL at {key}", kl),
        ("ppl ratio", f"{{{key} ppl ratio:.3f}}"),
        ("same top", f"{{{key} same top:.1%}}"),
    ]


def _values(key: str, line: Line) -> dict[str, Any]:
    return {
        key: mean_and_spread(line.kl),
        f"{key} ppl ratio": line.perplexity_ratio.mean,
        f"{key} same top": line.same_top.mean,
        **{f"{key} {domain}": kl.mean for domain, kl in line.kl_by_domain.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=OUT", help="the model's name, its run")
    parser.add_argument("--show", choices=("kl", "quality", "domains"), default="kl")
    parser.add_argument("--command", help="the `tenp-edge compare` that made them")
    add_record_flag(parser)
    arguments = parser.parse_args()
    results = {}
    for run in arguments.runs:
        name, _, directory = run.partition("=")
        results[name] = json.loads((Path(directory) / "compare.json").read_text())
    table = side_by_side(results, arguments.show)
    print(table)
    write_record(arguments.record, arguments.command, methods=table)


if __name__ == "__main__":
    main()
