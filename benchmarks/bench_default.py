"""Is the default the best there is on text of the kinds that it was given?

The table of docs/results.md, "The default beside its rivals".
    python benchmarks/train_reference.py WORK --corpus DIR --models qwen3_moe_small
    python benchmarks/bench_default.py OUT --text WORK --model WORK/qwen3_moe_small/model
    python benchmarks/bench_default.py OUT --text TEXT --model MODEL    # the same call continues

TEXT/calibration/NAME.jsonl.gz and TEXT/heldout/NAME.jsonl.gz: a kind of text each (.jsonl works
too). Every model is calibrated on (a) all kinds in one file, (b) the same as named domains, (c) one
kind (`--one`), with as many tokens each. The KL of the default is set beside the least of its
rivals, on held-out text of the calibrated kinds; 1.05 is allowed. For (c) the other kinds are shown
too. Repaired rows stand beside: as many bytes, other weights.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from records import Table, add_record_flag, write_record
from rich.console import Console

from tenp_edge.cli.output.terminal import TerminalProgress
from tenp_edge.verbs.compare import run_compare
from tenp_edge.verbs.compare_options import CompareOptions
from tenp_edge.verbs.options import CalibrationOptions, ValidationOptions

CUT, REPAIRED = "adaptive", "adaptive+repair"  # REPAIRED is what `compress` writes
RIVALS = ("adaptive-uninsured", "free", "layer-energy", "layer-camera-p", "global-heapr-sum")
OTHERS = ("adaptive-insured", "tenp", "drop-easy-ep", "tenp+repair")
KEEPS = (0.9, 0.75, 0.6, 0.45, 0.3)
ALLOWED = 1.05
MIXED_CHARS = 400_000  # of each kind in the one file
DOCUMENT_CHARS = 20_000


def texts_of(file: Path) -> list[str]:
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines if line.strip()]


def kinds(directory: Path) -> dict[str, Path]:
    return {file.name.split(".")[0]: file for file in sorted(directory.glob("*.jsonl*"))}


def write_mixed(calibration: Mapping[str, Path], file: Path) -> None:
    """Equal parts of every kind, their documents shuffled."""
    documents: list[str] = []
    for path in calibration.values():
        beginnings = [text[:DOCUMENT_CHARS] for text in texts_of(path)]
        random.Random(0).shuffle(beginnings)
        size = 0
        for text in beginnings:
            if size >= MIXED_CHARS:
                break
            documents.append(text)
            size += len(text)
    random.Random(1).shuffle(documents)
    lines = [json.dumps({"text": text}) for text in documents]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


COLUMNS = (
    ("model", "{model}"),
    ("calibrated on", "{calibrated_on}"),
    ("keep", "{keep:g}"),
    ("default, not repaired", "{cut:.3g}"),
    ("best rival", "{rival} {rival_kl:.3g}"),
    ("ratio", "{ratio:.3f}{mark}"),
    ("`--protect much`", "{much:.3g}"),
    ("experts removed (EASY-EP)", "{removed:.3g}"),
    ("default", "{default:.3g}"),
    (
        "other text: not repaired / much / EASY-EP / default",
        "{other_cut:.3g} / {other_much:.3g} / {other_removed:.3g} / {other_default:.3g}",
    ),
)
SHOWN = {"cut": CUT, "much": "adaptive-insured", "removed": "drop-easy-ep", "default": REPAIRED}


def rows(result: Mapping[str, Any], calibrated: Sequence[str]) -> Iterator[dict[str, Any]]:
    """For each ratio the default, its best rival and their ratio: KL in nats on the ``calibrated``
    kinds, and on the others (None where there are none)."""
    for keep in dict.fromkeys(row["keep"] for row in result["rows"]):
        here = [row for row in result["rows"] if row["keep"] == keep]
        kl = {row["method"]: mean_kl(row, calibrated) for row in here}
        other_kl = {row["method"]: mean_kl(row, calibrated, others=True) for row in here}
        rival = min(RIVALS, key=lambda name: kl[name])
        ratio = kl[CUT] / kl[rival]
        yield {
            "keep": keep,
            **{key: kl[method] for key, method in SHOWN.items()},
            "rival": rival,
            "rival_kl": kl[rival],
            "ratio": ratio,
            "mark": "" if ratio <= ALLOWED else " **above**",
            **{f"other_{key}": other_kl[method] for key, method in SHOWN.items()},
        }


def mean_kl(row: Mapping[str, Any], calibrated: Sequence[str], others: bool = False) -> Any:
    """Mean over the calibrated kinds, or over the others; None where there are none."""
    values = [
        scores["mean_kl"]
        for domain, scores in row["text"].items()
        if (domain in calibrated) is not others
    ]
    return sum(values) / len(values) if values else None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--one", default="code", help="the kind of (c)")
    parser.add_argument("--tokens", type=int, default=32_768, help="of each calibration")
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--eval-samples", type=int, default=16)
    parser.add_argument("--keep", type=float, nargs="+", default=list(KEEPS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--label", help="the model's name in the table (default: its directory's)")
    add_record_flag(parser)
    arguments = parser.parse_args()
    label = arguments.label or arguments.model.resolve().name
    arguments.output.mkdir(parents=True, exist_ok=True)
    calibration, held_out = (kinds(arguments.text / split) for split in ("calibration", "heldout"))
    mixed = arguments.output / "mixed.jsonl"
    write_mixed(calibration, mixed)
    cases: dict[str, dict[str, Path]] = {
        "all kinds, one file": {"mixed": mixed},
        "all kinds, named": calibration,
        f"{arguments.one} alone": {arguments.one: calibration[arguments.one]},
    }
    table = Table(COLUMNS)
    for name, data in cases.items():
        result = run_compare(
            arguments.model,
            arguments.output / name.replace(", ", "-").replace(" ", "-"),
            _options(arguments, data, held_out),
            TerminalProgress(Console(stderr=True)),
        )
        of_calibrated = list(held_out) if len(data) > 1 or "mixed" in data else list(data)
        for row in rows(result, of_calibrated):
            table.add({"model": label, "calibrated_on": name, **row})
    (arguments.output / "default.md").write_text(f"{table}\n", encoding="utf-8")
    print(table)
    write_record(arguments.record, cells=table)


def _options(
    arguments: argparse.Namespace, data: Mapping[str, Path], held_out: Mapping[str, Path]
) -> CompareOptions:
    samples = arguments.tokens // (arguments.seq_len * len(data))
    return CompareOptions(
        calibration=CalibrationOptions(
            tuple(f"{name}={path}" for name, path in data.items()), samples, arguments.seq_len
        ),
        validation=ValidationOptions(
            tuple(f"{name}={path}" for name, path in held_out.items()),
            arguments.eval_samples,
            arguments.seq_len,
        ),
        ratios=tuple(arguments.keep),
        methods=(CUT, *RIVALS, *OTHERS, REPAIRED),
        seeds=arguments.seeds,
        questions=0,
    )


if __name__ == "__main__":
    main()
