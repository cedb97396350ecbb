"""How much of the three reference models survives, by method: the tables of docs/results.md.

    python benchmarks/train_reference.py WORK --corpus DIR    # first: the models
    python benchmarks/bench_references.py WORK -o OUT          # the same call continues

For every model: all methods that keep the weights at keep 0.6 and 0.45 (three calibrations); the
paper's claims (one); the default beside its rivals calibrated on one domain alone, measured on all
of them; what repair and healing add; the short list at 0.9, 0.75 and 0.3; few samples; questions.
OUT/NAME/... has what `tenp-edge compare` writes; OUT/summary.md what must be reached: the default
against the best of every other kind, with the spread of the calibrations.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tenp_edge.calibration.storage import load_statistics
from tenp_edge.cli.terminal import TerminalProgress
from tenp_edge.evaluation.comparison.compared_methods import choose_methods
from tenp_edge.evaluation.comparison.table import Line, lines, predictions
from tenp_edge.scoring.saliency import ranking_scores
from tenp_edge.units import nats
from tenp_edge.verbs.compare import run_compare
from tenp_edge.verbs.options import CalibrationOptions, CompareOptions, ValidationOptions

NAMES = ("qwen3_moe", "qwen2_moe", "deepseek_v3")
DEFAULT = "adaptive"
# Variants of the default and sorts by this project's own score: not baselines of it.
OWN = ("adaptive", "global-relative", "layer-relative")
# Short chunks: a domain holds many kinds of text, and the more places are read, the less the
# choice of places says.
SEQUENCE, SAMPLES, EVAL_SAMPLES = 128, 128, 16
SPLITS = ("code", "prose")
SPLIT_METHODS = ("adaptive", "adaptive-uninsured", "tenp", "enp", "global-heapr", "drop-easy-ep")
SAMPLE_METHODS, FEW_SAMPLES = ("adaptive", "tenp", "enp"), (2, 8, 32)
# Calibrated like "table": all domains, the same samples.
SAME_CALIBRATIONS = ("claims", "mended", "short", "tasks")
CUTS = ("table", "claims", "short")  # the runs whose plans are predicted and shown side by side
TASK_METHODS = ("adaptive", "tenp", "enp", "global-heapr", "drop-easy-ep", "drop-reap", "random")


def options_of(work: Path, **chosen: Any) -> CompareOptions:
    """``chosen``: calibrated (names of domains; all of them when empty), and CompareOptions."""
    domains = sorted(file.name.split(".")[0] for file in (work / "heldout").glob("*.jsonl.gz"))
    calibrated = chosen.pop("calibrated", ()) or domains
    data = tuple(f"{name}={work / 'calibration' / name}.jsonl.gz" for name in calibrated)
    held_out = tuple(f"{name}={work / 'heldout' / name}.jsonl.gz" for name in domains)
    return CompareOptions(
        calibration=CalibrationOptions(data, chosen.pop("samples", SAMPLES), SEQUENCE),
        validation=ValidationOptions(held_out, EVAL_SAMPLES, SEQUENCE),
        **chosen,
    )


def runs(work: Path, seeds: int) -> Iterator[tuple[str, CompareOptions]]:
    """Name of its directory and options of every comparison of one model."""
    deep, rest = (0.6, 0.45), (0.9, 0.75, 0.3)

    def run(**chosen: Any) -> CompareOptions:
        return options_of(work, **{"ratios": deep, "seeds": 1, "questions": 0, **chosen})

    yield "table", run(methods=_cuts("table"), seeds=seeds)
    yield "claims", run(methods=_cuts("claims"))
    for split in SPLITS:
        yield f"calibrated-on-{split}", run(calibrated=(split,), methods=SPLIT_METHODS)
    yield "mended", run(methods=(DEFAULT, "tenp", "mended"))
    yield "short", run(methods=_cuts("short"), ratios=rest)
    for samples in FEW_SAMPLES:
        yield f"samples-{samples}", run(samples=samples, methods=SAMPLE_METHODS, seeds=seeds)
    yield "tasks", run(methods=TASK_METHODS, questions=32)


def _cuts(*sets: str) -> tuple[str, ...]:
    """The methods of ``sets`` that leave the weights as they are."""
    return tuple(method.name for method in choose_methods(sets) if "mended" not in method.sets)


# -- what must be reached --------------------------------------------------------------------------


def kind(method: str) -> str:
    """Which bar a method belongs to."""
    if method.startswith(("drop-", "mone")):
        return "whole experts"
    if method.startswith(OWN):
        return "own"
    if method == "wanda-rows":
        return "weights"  # it saves no bytes
    return "neurons"


def bars(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    """Rows of the summary: the default, the best neuron method, the best whole-expert method."""
    found = lines(result)
    for keep in dict.fromkeys(line.keep for line in found):
        here = [line for line in found if line.keep == keep]
        own = next(line for line in here if line.method == DEFAULT)
        neurons = _best(here, "neurons")
        experts = _best(here, "whole experts")
        outside = own.kl.high < neurons.kl.low
        ahead = [100 * lead for lead in leads(result, keep)]
        yield (
            f"| {name} | {keep:g} | {own.kl} | {neurons.method} {neurons.kl} | "
            f"{'yes' if outside else 'no'} | {min(ahead):.1f} % to {max(ahead):.1f} % | "
            f"{experts.method} {experts.kl} | {100 * own.kl.mean / experts.kl.mean:.0f} % |"
        )


def leads(result: Mapping[str, Any], keep: float) -> list[float]:
    """For each calibration, how far the default's KL is below the least of all other methods of as
    many bytes, as a share of that one's."""
    rows = [row for row in result["rows"] if row["keep"] == keep]
    ahead = []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        kl = {row["method"]: row["overall"]["mean_kl"] for row in rows if row["seed"] == seed}
        others = [kl[method] for method in kl if kind(method) in ("neurons", "whole experts")]
        ahead.append(1 - kl[DEFAULT] / min(others))
    return ahead


def _best(found: Sequence[Line], wanted: str) -> Line:
    return min((line for line in found if kind(line.method) == wanted), key=lambda x: x.kl.mean)


def split_rows(name: str, split: str, result: Mapping[str, Any]) -> Iterator[str]:
    """KL of the domain that was calibrated on, and the mean of the others."""
    for line in lines(result):
        others = [kl.mean for domain, kl in line.kl_by_domain.items() if domain != split]
        yield (
            f"| {name} | {split} | {line.keep:g} | {line.method} | "
            f"{nats(line.kl_by_domain[split].mean)} | {nats(sum(others) / len(others))} |"
        )


def side_by_side(results: Mapping[str, Mapping[str, Mapping[str, Any]]], run: str) -> list[str]:
    """KL of every method at every ratio of ``run``, a column for each model and ratio; best mean
    (over the columns' logarithms) first."""
    found: dict[str, dict[tuple[str, float], Line]] = {}
    for name, by_run in results.items():
        for line in lines(by_run[run]):
            found.setdefault(line.method, {})[name, line.keep] = line
    columns = list(dict.fromkeys(key for row in found.values() for key in row))
    columns.sort(key=lambda column: -column[1])

    def order(method: str) -> float:
        return sum(math.log(max(line.kl.mean, 1e-9)) for line in found[method].values())

    head = ["method", *(f"{name} {keep:g}" for name, keep in columns)]
    rows = [
        [method, *(str(found[method][column].kl) for column in columns)]
        for method in sorted(found, key=order)
    ]
    return [_cells(head), "|" + "---|" * len(head), *map(_cells, rows)]


def cheapest_share(calibration: Path, share: float = 0.4) -> tuple[float, float]:
    """What the cheapest ``share`` of the neurons, and of the experts, have of all predicted loss.

    Sums of single neurons, relative to the residual stream: how much there is to cut for nothing.
    """
    statistics = load_statistics(calibration)
    layers = [ranking_scores(statistics, layer, "relative") for layer in statistics.layers]
    neurons = torch.cat([layer.flatten() for layer in layers])
    experts = torch.cat([layer.sum(dim=1) for layer in layers])

    def part(losses: torch.Tensor) -> float:
        return float(losses.sort().values[: int(share * len(losses))].sum() / losses.sum())

    return part(neurons), part(experts)


def mended_rows(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    """What repair and healing make of the same cuts."""
    for line in lines(result):
        yield _cells([name, f"{line.keep:g}", line.method, str(line.kl)])


def _cells(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def summary(results: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The page, from model -> run -> comparison."""
    head = ["model", "keep", "default", "best of neurons", "outside the spread"]
    head += ["ahead in each calibration", "best of whole experts", "share of it"]
    parts = [_cells(head), "|" + "---|" * len(head)]
    for name, found in results.items():
        parts += bars(name, found["table"])
    parts += ["", "| model | calibrated on | keep | method | its KL | other domains |"]
    parts += ["|---|---|---|---|---|---|"]
    for name, found in results.items():
        for split in SPLITS:
            parts += split_rows(name, split, found[f"calibrated-on-{split}"])
    parts += ["", "| model | keep | method | KL |", "|---|---|---|---|"]
    for name, found in results.items():
        parts += mended_rows(name, found["mended"])
    parts += ["", "| model | run | keep | plans | rank correlation |", "|---|---|---|---|---|"]
    for name, found in results.items():
        for run in CUTS:
            parts += [
                f"| {name} | {run} | {p.keep or 'all'} | {p.plans} | {p.rank_correlation:.3f} |"
                for p in predictions(found[run])
            ]
    for run in CUTS:
        parts += ["", *side_by_side(results, run)]
    return "\n".join(parts) + "\n"


def cheap_page(output: Path, models: Iterable[str]) -> str:
    """`cheapest_share` of every model's first calibration."""
    rows = ["", "| model | cheapest 40 % of the neurons | of the experts |", "|---|---|---|"]
    for name in models:
        neurons, experts = cheapest_share(output / name / "table" / "calibration-0")
        rows.append(_cells([name, f"{100 * neurons:.2f} %", f"{100 * experts:.1f} %"]))
    return "\n".join(rows) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="directory of train_reference.py")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    progress = TerminalProgress(Console(stderr=True))
    for name in arguments.models:
        for run, options in runs(arguments.work, arguments.seeds):
            where = arguments.output / name / run
            if run in SAME_CALIBRATIONS:
                _share_calibrations(arguments.output / name / "table", where)
            run_compare(arguments.work / name / "model", where, options, progress)
    results = dict(_finished(arguments.work, arguments.output))
    page = summary(results) + cheap_page(arguments.output, results)
    (arguments.output / "summary.md").write_text(page)
    print(page)


def _share_calibrations(known: Path, where: Path) -> None:
    """Let ``where`` have those of ``known``: they are of the same text and seeds."""
    where.mkdir(parents=True, exist_ok=True)
    for directory in known.glob("calibration-*"):
        link = where / directory.name
        if not link.exists():
            link.symlink_to(directory.resolve())


def _finished(work: Path, output: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The comparisons of every model that has all of them."""
    names = [run for run, _ in runs(work, 1)]
    for model in NAMES:
        files = {run: output / model / run / "compare.json" for run in names}
        if all(file.is_file() for file in files.values()):
            yield model, {run: json.loads(file.read_text()) for run, file in files.items()}


if __name__ == "__main__":
    main()
