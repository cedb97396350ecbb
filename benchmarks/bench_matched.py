"""At equal bytes: the whole model in few bits, pruned ones in more, and the plans of one search.

    python benchmarks/train_reference.py WORK --corpus DIR --models qwen3_moe_blocks
    python benchmarks/bench_matched.py OUT --text WORK NAME=WORK/qwen3_moe_blocks/model
    python benchmarks/bench_matched.py OUT --text WORK NAME=DIR NAME=DIR --record matched.json

The first table of docs/results.md: `tenp-edge compare --matched` on every model. TEXT/calibration/
NAME.jsonl.gz and TEXT/heldout/NAME.jsonl.gz hold a kind of text each. Every model is calibrated on
(a) all kinds in one file, (b) one kind (`--one`), (c) the text in the package, which is none of
them; `--calibrations` picks of these. KL is the mean over the held-out kinds that were calibrated
on, and over the others. The bars are those of `evaluation.matched.bars`, judged on the calibrated
kinds (of (c) on all). The bound is the least loss that any types and widths of the experts could
have in the bytes of the joint plan's experts, read as a KL by the model's own law
(`evaluation.rate_distortion`): what the physics allows, not what a format can do.

The same call continues. `--files` writes every row's file, times it and measures its memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench_default import kinds, mean_kl, write_mixed
from records import Table, add_record_flag, write_record
from rich.console import Console

from tenp_edge.calibration.storage import load_statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.cli.output.terminal import TerminalProgress
from tenp_edge.evaluation.matched.bars import bars
from tenp_edge.evaluation.matched.filled import BUDGETS
from tenp_edge.evaluation.rate_distortion import least_expert_loss
from tenp_edge.evaluation.refine import known_trials
from tenp_edge.planning.measured.kl_law import predicted_kl
from tenp_edge.verbs.compare_matched import run_compare_matched
from tenp_edge.verbs.compare_options import CompareOptions
from tenp_edge.verbs.options import CalibrationOptions, ValidationOptions

MIXED, ONE, OTHER = "mixed", "one", "other"
# Columns of the table: key and way.
WAYS = {
    "whole": "whole",
    "own": "own types",
    "pruned": "pruned",
    "pruned_repair": "pruned+repair",
    "reap": "reap",
    "easy_ep": "easy-ep",
    "joint": "joint",
    "joint_repair": "joint+repair",
}
COLUMNS = (
    ("model", "{model}"),
    ("calibrated on", "{calibrated_on}"),
    ("bytes of the whole model in", "{budget}, {budget_bytes:size}"),
    ("whole, best type", "{whole:.3g} {whole_what}"),
    ("whole, own types", "{own:.3g}"),
    ("one type, pruned", "{pruned:.3g} {pruned_what}"),
    ("repaired", "{pruned_repair:.3g}"),
    ("experts removed, REAP / EASY-EP", "{reap:.3g} / {easy_ep:.3g}"),
    ("joint", "{joint:.3g} {joint_what}"),
    ("repaired", "{joint_repair:.3g}"),
    ("joint / whole", "{of_whole:.2f}{whole_mark}"),
    ("joint / pruned", "{of_pruned:.2f}{pruned_mark}"),
    ("bound", "{bound:.2g}"),
)
RUN_COLUMNS = (
    ("model", "{model}"),
    ("budget", "{budget}"),
    ("row", "{way}"),
    ("file", "{file_bytes:size}"),
    ("prefill, tokens/s", "{prefill:.0f}"),
    ("decode, tokens/s", "{decode:.0f}"),
    ("peak RSS", "{peak:size}"),
)


def rows(
    result: Mapping[str, Any], calibrated: Sequence[str], others: bool, bound: Any
) -> Iterator[dict[str, Any]]:
    """A line a budget, of KL on the ``calibrated`` kinds or on the ``others``."""
    for budget in result["budgets"]:
        size = budget["file_bytes"]
        here = {row["way"]: row for row in result["rows"] if row["budget_bytes"] == size}
        kl = {way: mean_kl(row, calibrated, others) for way, row in here.items()}
        line: dict[str, Any] = {
            "budget": " = ".join(budget["names"]),
            "budget_bytes": size,
            **{key: kl.get(way) for key, way in WAYS.items()},
            **{f"{key}_what": _what(here[way]) for key, way in WAYS.items() if way in here},
        }
        known = [key for key in WAYS if line[key] is not None]
        line["bold"] = [min(known, key=lambda key: line[key])]
        line |= _judged(here, kl) if "joint" in here else {}
        if bound is not None and "joint" in here and not others:
            line["bound"] = bound(here["joint"]["expert_bytes"])
        yield line


def _what(row: Mapping[str, Any]) -> str:
    kept = "" if row["kept"] == 1 else f" {100 * row['kept']:.0f} %"
    kind = row["commonest_type"] if row["quant"] == "auto" else row["quant"]
    return f"({kind}{kept})"


def _judged(here: Mapping[str, Mapping[str, Any]], kl: Mapping[str, float]) -> dict[str, Any]:
    """The ratios that the bars are about, marked where they are missed."""
    judged: dict[str, Any] = {}
    of_kinds = [{**row, "overall": {"mean_kl": kl[way]}} for way, row in here.items()]
    for bar in bars({"rows": of_kinds}):
        judged[f"of_{bar.rival}"] = bar.ratio
        judged[f"{bar.rival}_mark"] = "" if bar.held else f" **(> {bar.limit:g})**"
    return judged


def runs(result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """How the rows' files run, where that was measured."""
    for row in result["rows"]:
        if "run" in row:
            run = row["run"]
            yield {
                "budget": " = ".join(row["budget"]),
                "way": row["way"],
                "file_bytes": run["file_bytes"],
                "prefill": run["prefill_tokens_per_second"],
                "decode": run["decode_tokens_per_second"],
                "peak": run["peak_rss_bytes"],
            }


def main() -> None:
    arguments = _arguments()
    arguments.output.mkdir(parents=True, exist_ok=True)
    calibration, held_out = (kinds(arguments.text / split) for split in ("calibration", "heldout"))
    mixed = arguments.output / "mixed.jsonl"
    write_mixed(calibration, mixed)
    texts: dict[str, tuple[str, dict[str, Path]]] = {
        MIXED: ("all kinds, one file", {"mixed": mixed}),
        ONE: (f"{arguments.one} alone", {arguments.one: calibration[arguments.one]}),
        OTHER: ("the text in the package", {}),
    }
    own, other, ran = Table(COLUMNS), Table(COLUMNS), Table(RUN_COLUMNS)
    for named in arguments.models:
        name, _, path = named.partition("=")
        for kind in arguments.calibrations:
            said, data = texts[kind]
            of_calibrated = list(data) if kind == ONE else list(held_out)
            directory = arguments.output / f"{name}-{kind}"
            options = _options(arguments, data, held_out)
            shown = TerminalProgress(Console(stderr=True))
            result = run_compare_matched(Path(path), directory, options, shown)
            about = {"model": name, "calibrated_on": said}
            bound = _bound(Checkpoint(Path(path)), directory)
            for line in rows(result, of_calibrated, False, bound):
                print(own.add(about | line), flush=True)
            if kind == ONE:
                other.rows += [about | line for line in rows(result, of_calibrated, True, None)]
            ran.rows += [{"model": name, **line} for line in runs(result)]
    page = "\n\n".join(map(str, (own, other, ran)))
    (arguments.output / "matched.md").write_text(f"{page}\n", encoding="utf-8")
    print(page)
    write_record(arguments.record, kl=own, other=other, runs=ran)


def _bound(checkpoint: Checkpoint, directory: Path) -> Any:
    """Bytes of the experts -> nats; None where nothing is known of rounding."""
    work = directory / "calibration-0"
    statistics = load_statistics(work, checkpoint.fingerprint, checkpoint.config)
    if not statistics.has_rounding:
        return None
    least, trials = least_expert_loss(checkpoint, statistics), known_trials(work)
    return lambda nbytes: predicted_kl(least(nbytes), trials)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--calibrations", nargs="+", default=[MIXED, ONE, OTHER])
    parser.add_argument("--one", default="code", help="the kind of (b)")
    parser.add_argument("--tokens", type=int, default=32_768, help="of each calibration")
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--eval-samples", type=int, default=16)
    parser.add_argument("--budget", nargs="+", default=list(BUDGETS))
    parser.add_argument("--questions", type=int, default=0)
    parser.add_argument("--files", action="store_true", help="run every row's file")
    add_record_flag(parser)
    return parser.parse_args()


def _options(
    arguments: argparse.Namespace, data: Mapping[str, Path], held_out: Mapping[str, Path]
) -> CompareOptions:
    domains = len(data) or len(held_out)  # the package has as many kinds or fewer
    return CompareOptions(
        matched=True,
        budgets=tuple(arguments.budget),
        files=arguments.files,
        questions=arguments.questions,
        seeds=1,
        calibration=CalibrationOptions(
            tuple(f"{name}={path}" for name, path in data.items()),
            arguments.tokens // (arguments.seq_len * domains),
            arguments.seq_len,
        ),
        validation=ValidationOptions(
            tuple(f"{name}={path}" for name, path in held_out.items()),
            arguments.eval_samples,
            arguments.seq_len,
        ),
    )


if __name__ == "__main__":
    main()
