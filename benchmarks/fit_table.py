"""Which real models fit 8, 16 and 32 GB: plans of published configs, without a weight.

    python benchmarks/fit_table.py                    # the models of published_configs.py
    python benchmarks/fit_table.py --configs DIR      # every NAME.json (a config.json) in DIR
    python benchmarks/fit_table.py --new --record docs/results/fits.json  # what it lacks

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
from dataclasses import replace
from pathlib import Path
from typing import Any

from published_configs import PUBLISHED
from random_checkpoint import write_holes
from random_tokenizer import write_full_tokenizer
from records import Row, Table, add_record_flag, load, write_record

from tenp_edge import PlanOptions, UserError, inspect_model, run_plan

PROFILES = {"8 GB": "laptop-8gb", "16 GB": "laptop-16gb", "32 GB": "laptop-32gb"}
CONTEXT = 4096
FOUR_BITS = "Q4_K_M"
PRUNED = 0.6
SAME = 0.01  # How far the parameters may be from what the card says, as a share.


COLUMNS = (
    ("model", "{model}"),
    ("parameters", "{billions:.1f} B"),
    ("bf16 file", "{stored:.1f} GiB"),
    (f"{FOUR_BITS}, whole", "{whole:.1f} GiB"),
    (f"{FOUR_BITS}, {100 * PRUNED:.0f} %", "{pruned:.1f} GiB"),
    *((memory, f"{{{memory}}}") for memory in PROFILES),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", type=Path, help="a directory of config.json files")
    parser.add_argument("--dir", type=Path, help="where 300 MB may lie (holes, vocabularies)")
    parser.add_argument("--new", action="store_true", help="take the others from the record")
    add_record_flag(parser)
    arguments = parser.parse_args()
    table, known = Table(COLUMNS), recorded(arguments.record) if arguments.new else {}
    print(table.head)
    for name, stated, raw in chosen(arguments.configs):
        if arguments.dir is not None:
            arguments.dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="fit-") as directory:
            row = known.get(name) or planned(name, raw, Path(directory))
        billions = row["parameters"] / 1e9
        if stated and abs(billions / stated - 1) > SAME:
            sys.exit(f"{name} has {billions:.2f} B parameters, its card {stated} B")
        print(table.add(row), flush=True)
    command = __file__ if arguments.new else None
    write_record(arguments.record, command, fits=table)


def recorded(file: Path) -> dict[str, Row]:
    """The rows of a record by their models."""
    return {row["model"]: row for row in load(file).tables["fits"].rows}


def chosen(configs: Path | None) -> Iterator[tuple[str, float | None, Mapping[str, Any]]]:
    """Name, stated parameters in billions (None: not known) and config of every model."""
    if configs is None:
        for name, (stated, raw) in PUBLISHED.items():
            yield name, stated, raw
        return
    for file in sorted(configs.glob("*.json")):
        yield file.stem, None, json.loads(file.read_text(encoding="utf-8"))


def planned(name: str, raw: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """The row of the model with config ``raw``, whose headers are written to ``directory``."""
    write_holes(directory, raw)
    summary = inspect_model(directory)
    write_full_tokenizer(directory, summary.vocab_size)
    four = PlanOptions(quant=FOUR_BITS, context=CONTEXT, keep=1.0)
    sizes = {
        "stored": summary.bytes,
        "whole": run_plan(directory, four).memory["total_bytes"],
        "pruned": run_plan(directory, replace(four, keep=PRUNED)).memory["total_bytes"],
    }
    return {
        "model": name,
        "parameters": summary.parameters,
        "billions": summary.parameters / 1e9,
        **{key: size / 2**30 for key, size in sizes.items()},
        **{memory: fitting(directory, profile) for memory, profile in PROFILES.items()},
    }


def fitting(directory: Path, profile: str) -> str:
    """Type and share of the neurons of the plan for ``profile``, or why there is none."""
    try:
        plan = run_plan(directory, PlanOptions(profile=profile, context=CONTEXT))
    except UserError:
        return "does not fit"
    kept = "whole" if plan.keep_ratio == 1 else f"{100 * plan.keep_ratio:.0f} %"
    return f"{plan.record.quant}, {kept}"


if __name__ == "__main__":
    main()
