"""Does the text in the package guide better than the standard library? The table of
docs/results.md.

    python benchmarks/bench_text.py OUT --model MODEL --eval-data prose=a.jsonl --eval-data ...

MODEL is calibrated on as many tokens of either; the default's KL is measured on text that is
neither. The same call continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from records import Table, add_record_flag, write_record
from rich.console import Console

from tenp_edge.cli.output.terminal import TerminalProgress
from tenp_edge.verbs.compare import run_compare
from tenp_edge.verbs.compare_options import CompareOptions
from tenp_edge.verbs.options import CalibrationOptions, ValidationOptions

DOMAINS = {"builtin": 4, "stdlib": 2}
LABELS = {"adaptive": "default, not repaired", "adaptive+repair": "default"}


def kl_by_domain(result: Mapping[str, Any]) -> dict[tuple[float, str, str], float]:
    """(keep, method, domain) -> mean KL over the seeds, with the mean of the domains as "mean"."""
    by_seed: dict[tuple[float, str, str], list[float]] = {}
    for row in result["rows"]:
        kls = {domain: scores["mean_kl"] for domain, scores in row["text"].items()}
        kls["mean"] = sum(kls.values()) / len(kls)
        for domain, kl in kls.items():
            by_seed.setdefault((row["keep"], row["method"], domain), []).append(kl)
    return {key: sum(values) / len(values) for key, values in by_seed.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--eval-data", action="append", required=True)
    parser.add_argument("--tokens", type=int, default=32_768, help="of each calibration")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--eval-samples", type=int, default=16)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.6, 0.45])
    parser.add_argument("--method", nargs="+", default=["adaptive", "adaptive+repair"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--label", help="the model's name in the table (default: its directory's)")
    add_record_flag(parser)
    arguments = parser.parse_args()
    label = arguments.label or arguments.model.resolve().name
    by_text = {}
    for text, domains in DOMAINS.items():
        samples = arguments.tokens // (domains * arguments.seq_len)
        options = CompareOptions(
            calibration=CalibrationOptions((text,), samples, arguments.seq_len),
            validation=ValidationOptions(
                tuple(arguments.eval_data), arguments.eval_samples, arguments.seq_len
            ),
            ratios=tuple(arguments.keep),
            methods=tuple(arguments.method),
            seeds=arguments.seeds,
            questions=0,
        )
        progress = TerminalProgress(Console(stderr=True))
        output = arguments.output / text
        by_text[text] = kl_by_domain(run_compare(arguments.model, output, options, progress))
    table = rows(by_text, label)
    print(table)
    write_record(arguments.record, kl=table)


def rows(by_text: Mapping[str, Mapping[tuple[float, str, str], float]], label: str) -> Table:
    """A row a ratio and method: KL by calibration text, in nats, a column for each domain."""
    keys = list(dict.fromkeys(key for measured in by_text.values() for key in measured))
    domains = dict.fromkeys(domain for _, _, domain in keys)
    cells = [
        (domain, " / ".join(f"{{{domain} {text}:.3g}}" for text in by_text)) for domain in domains
    ]
    table = Table([("model", "{model}"), ("keep", "{keep:g}"), ("method", "{method}"), *cells])
    for keep, method in dict.fromkeys(key[:2] for key in keys):
        kl = {
            f"{domain} {text}": measured[keep, method, domain]
            for text, measured in by_text.items()
            for domain in domains
        }
        table.add({"model": label, "keep": keep, "method": LABELS.get(method, method), **kl})
    return table


if __name__ == "__main__":
    main()
