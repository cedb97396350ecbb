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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from record_comparison import mean_and_spread, side_by_side
from records import Table, add_record_flag, write_record
from rich.console import Console

from tenp_edge.calibration.storage import load_statistics
from tenp_edge.cli.output.terminal import TerminalProgress
from tenp_edge.evaluation.comparison.compared_methods import choose_methods
from tenp_edge.evaluation.comparison.table import Line, lines, predictions
from tenp_edge.scoring.saliency import ranking_scores
from tenp_edge.verbs.compare import run_compare
from tenp_edge.verbs.compare_options import CompareOptions
from tenp_edge.verbs.options import CalibrationOptions, ValidationOptions

Results = Mapping[str, Mapping[str, Mapping[str, Any]]]  # model -> run -> comparison

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


RIVALS = (
    ("model", "{model}"),
    ("kept", "{keep:g}"),
    ("default", "{default:nats}"),
    ("best neuron method", "{neurons} {neurons_kl:nats}"),
    ("outside the spread", "{outside}"),
    ("ahead in each calibration", "{ahead_min:.1f} % to {ahead_max:.1f} %"),
    ("best whole-expert method", "{experts} {experts_kl:nats}"),
    ("share of it", "{share:.0%}"),
)


def rivals(name: str, result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of `RIVALS`: the default, the best neuron method, the best whole-expert method."""
    measured = lines(result)
    for keep in dict.fromkeys(line.keep for line in measured):
        here = [line for line in measured if line.keep == keep]
        default = next(line for line in here if line.method == DEFAULT)
        neurons, experts = _best(here, "neurons"), _best(here, "whole experts")
        ahead = [100 * lead for lead in leads(result, keep)]
        yield {
            "model": name,
            "keep": keep,
            "default": mean_and_spread(default.kl),
            "neurons": neurons.method,
            "neurons_kl": mean_and_spread(neurons.kl),
            "outside": "yes" if default.kl.high < neurons.kl.low else "no",
            "ahead_min": min(ahead),
            "ahead_max": max(ahead),
            "experts": experts.method,
            "experts_kl": mean_and_spread(experts.kl),
            "share": default.kl.mean / experts.kl.mean,
        }


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


def _best(measured: Sequence[Line], wanted: str) -> Line:
    return min((line for line in measured if kind(line.method) == wanted), key=lambda x: x.kl.mean)


ONE_DOMAIN = (
    ("model", "{model}"),
    ("calibrated on", "{calibrated_on}"),
    ("kept", "{keep:g}"),
    ("method", "{method}"),
    ("its own KL", "{its_kl:nats}"),
    ("the other four", "{others_kl:nats}"),
)


def one_domain(name: str, split: str, result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """KL of the domain that was calibrated on, and the mean of the others."""
    for line in lines(result):
        others = [kl.mean for domain, kl in line.kl_by_domain.items() if domain != split]
        yield {
            "model": name,
            "calibrated_on": split,
            "keep": line.keep,
            "method": line.method,
            "its_kl": line.kl_by_domain[split].mean,
            "others_kl": sum(others) / len(others),
        }


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


SPARE = (
    ("model", "{model}"),
    ("training", "{training}"),
    ("cheapest 40 % of neurons", "{neurons:.3g} %"),
    ("of experts", "{experts:.3g} %"),
    ("ratio", "{share_ratio:.2f}"),
    ("KL of the default", "{default:.4g}"),
    ("of the best removal", "{removal:.4g}"),
    ("ratio", "{kl_ratio:.2g}"),
)


def spare(name: str, trained: str, calibration: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `SPARE`: how much a model has to spare, beside the KL at 0.6."""
    neurons, experts = cheapest_share(calibration)
    here = [line for line in lines(result) if line.keep == 0.6]
    default = next(line.kl.mean for line in here if line.method == DEFAULT)
    removal = _best(here, "whole experts").kl.mean
    return {
        "model": name,
        "training": trained,
        "neurons": 100 * neurons,
        "experts": 100 * experts,
        "share_ratio": neurons / experts,
        "default": default,
        "removal": removal,
        "kl_ratio": default / removal,
    }


def repaired(results: Results) -> Table:
    """What repair and healing make of the same cuts, a column for each method."""
    methods = list(dict.fromkeys(line.method for _, line in _all_lines(results, "mended")))
    cells = [(method, f"{{{method}:nats}}") for method in methods]
    table = Table([("model", "{model}"), ("kept", "{keep:g}"), *cells])
    rows: dict[tuple[str, float], dict[str, Any]] = {}
    for name, line in _all_lines(results, "mended"):
        row = rows.setdefault((name, line.keep), {"model": name, "keep": line.keep})
        row[line.method] = line.kl.mean
    table.rows.extend(rows.values())
    return table


def few_samples(results: Results, keep: float = 0.6) -> Table:
    """KL by the number of calibration chunks of each domain, a row for each model and method."""
    by_run = {f"{samples} chunks": f"samples-{samples}" for samples in FEW_SAMPLES}
    by_run[f"{SAMPLES} chunks"] = "table"
    table = Table([(f"KL at {keep:g}", "{what}"), *((key, f"{{{key}:nats}}") for key in by_run)])
    rows: dict[str, dict[str, Any]] = {}
    for key, run in by_run.items():
        for name, line in _all_lines(results, run):
            if line.keep == keep and line.method in SAMPLE_METHODS:
                what = f"{name}, {line.method}"
                rows.setdefault(what, {"what": what})[key] = mean_and_spread(line.kl)
    table.rows.extend(rows.values())
    return table


QUESTIONS = (
    ("model", "{model}"),
    ("kept", "{keep}"),
    ("method", "{method}"),
    ("arithmetic exact answers", "{arithmetic:.1f} %"),
    ("cloze accuracy", "{cloze:.1f} %"),
)


def questions(name: str, result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of `QUESTIONS`, the whole model's first."""
    shares = {"whole": {"dense": result["dense"]["overall"]}}
    for row in result["rows"]:
        shares.setdefault(row["keep"], {})[row["method"]] = row["overall"]
    for keep, by_method in shares.items():
        for method, overall in by_method.items():
            yield {
                "model": name,
                "keep": keep,
                "method": method,
                "arithmetic": 100 * overall["arithmetic_exact_answers"],
                "cloze": 100 * overall["cloze_accuracy"],
            }


PREDICTED = (
    ("model", "{model}"),
    ("run", "{run}"),
    ("kept", "{keep}"),
    ("plans", "{plans}"),
    ("rank correlation", "{rank_correlation:.3f}"),
)


def predicted(name: str, run: str, result: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of `PREDICTED`, a ratio each, then all of them together."""
    for found in predictions(result):
        yield {
            "model": name,
            "run": run,
            "keep": found.keep or "all",
            "plans": found.plans,
            "rank_correlation": found.rank_correlation,
        }


def _all_lines(results: Results, run: str) -> Iterator[tuple[str, Line]]:
    for name, by_run in results.items():
        for line in lines(by_run[run]):
            yield name, line


def tables(results: Results, work: Path, output: Path) -> dict[str, Table]:
    """Every table, from model -> run -> comparison."""
    made = {
        "rivals": Table(RIVALS, [row for n, r in results.items() for row in rivals(n, r["table"])]),
        "one_domain": Table(ONE_DOMAIN),
        "spare": Table(SPARE),
        "questions": Table(QUESTIONS),
        "predicted": Table(PREDICTED),
        "repaired": repaired(results),
        "few_samples": few_samples(results),
    }
    for name, by_run in results.items():
        for split in SPLITS:
            made["one_domain"].rows.extend(
                one_domain(name, split, by_run[f"calibrated-on-{split}"])
            )
        calibration, trained = output / name / "table" / "calibration-0", trained_on(work / name)
        made["spare"].add(spare(name, trained, calibration, by_run["table"]))
        made["questions"].rows.extend(questions(name, by_run["tasks"]))
        for run in CUTS:
            made["predicted"].rows.extend(predicted(name, run, by_run[run]))
    for run in CUTS:
        made[run] = side_by_side({name: by_run[run] for name, by_run in results.items()})
    return made


def trained_on(directory: Path) -> str:
    """How much text a model of train_reference.py saw: "36.9 M tokens"."""
    log = json.loads((directory / "log.json").read_text())
    return f"{log[-1]['tokens'] / 1e6:.1f} M tokens"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path, help="directory of train_reference.py")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seeds", type=int, default=3)
    add_record_flag(parser)
    arguments = parser.parse_args()
    progress = TerminalProgress(Console(stderr=True))
    for name in arguments.models:
        for run, options in runs(arguments.work, arguments.seeds):
            where = arguments.output / name / run
            if run in SAME_CALIBRATIONS:
                _share_calibrations(arguments.output / name / "table", where)
            run_compare(arguments.work / name / "model", where, options, progress)
    results = dict(_finished(arguments.work, arguments.output))
    made = tables(results, arguments.work, arguments.output)
    page = "\n\n".join(map(str, made.values()))
    (arguments.output / "summary.md").write_text(f"{page}\n")
    print(page)
    write_record(arguments.record, **made)


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
