"""Which real models fit 8, 16 and 32 GB: plans of published configs, without a weight.

    python benchmarks/fit_table.py                    # the models of published_configs.py
    python benchmarks/fit_table.py --configs DIR      # every NAME.json (a config.json) in DIR

Each model is a directory of headers over holes with a random vocabulary of its size; planning reads
no weights. A cell is what `tenp-edge plan MODEL --profile laptop-8gb --context 4096` decides: the
tensor type by the rule, and the share of the routed-expert neurons that fits beside the rest.
About ten seconds of one core a plan, five plans a model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from published_configs import PUBLISHED
from random_checkpoint import write_holes
from random_tokenizer import write_full_tokenizer

from tenp_edge import PlanOptions, UserError, inspect_model, run_plan

PROFILES = {"8 GB": "laptop-8gb", "16 GB": "laptop-16gb", "32 GB": "laptop-32gb"}
CONTEXT = 4096
FOUR_BITS = "Q4_K_M"
PRUNED = 0.6
SAME = 0.01  # How far the parameters may be from what the card says, as a share.


@dataclass(frozen=True)
class Row:
    """One model; ``cells``: what fits each profile, in words."""

    name: str
    parameters: int
    stored_bytes: int
    whole_bytes: int
    pruned_bytes: int
    cells: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", type=Path, help="a directory of config.json files")
    parser.add_argument("--dir", type=Path, help="where 300 MB may lie (holes, vocabularies)")
    arguments = parser.parse_args()
    print(
        f"| model | parameters | bf16 file | {FOUR_BITS}, whole | {FOUR_BITS}, "
        f"{100 * PRUNED:.0f} % | {' | '.join(PROFILES)} |"
    )
    print(f"|{'---|' * (5 + len(PROFILES))}")
    for name, stated, raw in chosen(arguments.configs):
        with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="fit-") as directory:
            found = planned(name, raw, Path(directory))
        if stated and abs(found.parameters / 1e9 / stated - 1) > SAME:
            sys.exit(f"{name} has {found.parameters / 1e9:.2f} B parameters, its card {stated} B")
        print(shown(found), flush=True)


def chosen(configs: Path | None) -> Iterator[tuple[str, float | None, Mapping[str, Any]]]:
    """Name, stated parameters in billions (None: not known) and config of every model."""
    if configs is None:
        for name, (stated, raw) in PUBLISHED.items():
            yield name, stated, raw
        return
    for file in sorted(configs.glob("*.json")):
        yield file.stem, None, json.loads(file.read_text(encoding="utf-8"))


def planned(name: str, raw: Mapping[str, Any], directory: Path) -> Row:
    """The row of the model with config ``raw``, whose headers are written to ``directory``."""
    write_holes(directory, raw)
    write_full_tokenizer(directory, raw["vocab_size"])
    summary = inspect_model(directory)
    four = PlanOptions(quant=FOUR_BITS, context=CONTEXT, keep=1.0)
    return Row(
        name=name,
        parameters=summary.parameters,
        stored_bytes=summary.bytes,
        whole_bytes=run_plan(directory, four).memory["total_bytes"],
        pruned_bytes=run_plan(directory, replace(four, keep=PRUNED)).memory["total_bytes"],
        cells=tuple(fitting(directory, profile) for profile in PROFILES.values()),
    )


def fitting(directory: Path, profile: str) -> str:
    """Type and share of the neurons of the plan for ``profile``, or why there is none."""
    try:
        plan = run_plan(directory, PlanOptions(profile=profile, context=CONTEXT))
    except UserError:
        return "does not fit"
    kept = "whole" if plan.keep_ratio == 1 else f"{100 * plan.keep_ratio:.0f} %"
    return f"{plan.record.quant}, {kept}"


def shown(row: Row) -> str:
    """One line of the table."""
    sizes = (row.stored_bytes, row.whole_bytes, row.pruned_bytes)
    cells = [row.name, f"{row.parameters / 1e9:.1f} B", *(f"{s / 2**30:.1f} GiB" for s in sizes)]
    return f"| {' | '.join([*cells, *row.cells])} |"


if __name__ == "__main__":
    main()
