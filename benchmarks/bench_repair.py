"""The table of docs/results.md: repair by ridge, on text of the calibrated domain and of the other.

    python benchmarks/bench_repair.py [--model DIR] [--ridges 0.03 0.1 0.3] [--keeps 0.6 0.45]

Calibrates on both domains of the standard library's text, then on each alone, cuts by the default
method, and prints the KL on held-out text of every domain. Two minutes of one idle core.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from records import Table, add_record_flag, write_record

from tenp_edge.calibration.collect import calibrate
from tenp_edge.calibration.text.sources import STDLIB
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.evaluation.comparison.compared_methods import METHODS, Case
from tenp_edge.evaluation.comparison.grid import budget
from tenp_edge.evaluation.comparison.measures import TextMeasure
from tenp_edge.evaluation.evaluator import Evaluator, LayerCache
from tenp_edge.evaluation.variants import Planned
from tenp_edge.forward.text_batch import Domain
from tenp_edge.recovery.recover import MendRules, mend
from tenp_edge.verbs.options import CalibrationOptions, ValidationOptions
from tenp_edge.verbs.token_chunks import calibration_domains, validation_domains

DEMO = Path(__file__).parents[1] / "tenp_edge" / "demo_model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--method", default="adaptive", choices=METHODS)
    parser.add_argument("--ridges", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.3, 1.0])
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.6, 0.45])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--seq-len", type=int, default=256)
    add_record_flag(parser)
    arguments = parser.parse_args()
    checkpoint = Checkpoint(arguments.model)
    sizes = CalibrationOptions((STDLIB,), arguments.samples, arguments.seq_len)
    domains = calibration_domains(checkpoint, sizes)
    held = ValidationOptions((STDLIB,), arguments.samples, arguments.seq_len)
    parts = [TextMeasure.of(domain) for domain in validation_domains(checkpoint, held)]
    table = Table(columns(arguments.ridges))
    print(table.head)
    for name, chosen in [("both", domains), *((domain.name, [domain]) for domain in domains)]:
        for keep in arguments.keeps:
            measured = measure(checkpoint, chosen, arguments.method, keep, arguments.ridges, parts)
            for part, kl in zip(parts, measured, strict=True):
                keys = ["cut", *map(ridge_key, arguments.ridges)]
                about = {"calibrated_on": name, "keep": keep, "measured_on": part.block.name}
                print(table.add(about | dict(zip(keys, kl, strict=True))), flush=True)
    write_record(arguments.record, ridges=table)


def columns(ridges: Sequence[float]) -> list[tuple[str, str]]:
    """KL in nats of the cut, and of each ridge's repair of it."""
    return [
        ("calibrated on", "{calibrated_on}"),
        ("keep", "{keep:g}"),
        ("measured on", "{measured_on}"),
        ("cut", "{cut:.4f}"),
        *((ridge_key(ridge), f"{{{ridge_key(ridge)}:.4f}}") for ridge in ridges),
    ]


def ridge_key(ridge: float) -> str:
    return f"ridge {ridge:g}"


def measure(
    checkpoint: Checkpoint,
    domains: Sequence[Domain],
    method: str,
    keep: float,
    ridges: Sequence[float],
    parts: Sequence[TextMeasure],
) -> list[list[float]]:
    """Mean KL in nats of the cut model, then of each ridge's: a row for each of ``parts``."""
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        statistics = calibrate(checkpoint, domains, work / "statistics", dtype="float32")
        case = Case(checkpoint, statistics, width_multiple=1, seed=0)
        cut = METHODS[method].build(case, budget(case, keep)).candidate
        assert isinstance(cut, Planned) and cut.plan is not None
        candidates = [cut]
        for number, ridge in enumerate(ridges):
            rules = MendRules(repair_ridge=ridge)
            mended = mend(checkpoint, cut.plan, domains, work / f"mended-{number}", rules)
            candidates.append(Planned(cut.plan, mended))
        evaluator = Evaluator(
            LayerCache(checkpoint.path), device=torch.device("cpu"), dtype=torch.float32
        )
        measured = evaluator.measure(candidates, [part.block for part in parts])
        return [
            [part.result(row)["mean_kl"] for row in rows]
            for part, (_, rows) in zip(parts, measured, strict=True)
        ]


if __name__ == "__main__":
    main()
