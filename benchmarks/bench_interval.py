"""Does the interval of a predicted KL hold? Cited in docs/experiments.md.

    python benchmarks/bench_interval.py OUT demo MODEL... --samples 4 8 32

Each model is calibrated on a few samples of the text in the package and made smaller by compress,
repair included, to several sizes: by types and widths together within a RAM, and by widths alone.
Predicted and measured KL stand in OUT/interval.json. The same call continues.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.cli.hub import DEMO, bundled
from tenp_edge.cli.output.terminal import TerminalProgress
from tenp_edge.planning.measured.expected_kl import expected_kl
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.verbs.compress import run_compress
from tenp_edge.verbs.options import CalibrationOptions, CompressOptions, ValidationOptions
from tenp_edge.verbs.plan import run_plan

CONTEXT = 512
KEEPS = (0.75, 0.5)
SHARES = (0.8, 0.55, 0.4)  # of the whole model's bytes as Q8_0


@dataclass(frozen=True)
class Case:
    """One run: of ``model`` with ``samples`` of each kind of text, to one size."""

    model: Path
    samples: int
    name: str
    plan: PlanOptions


def cases(model: Path, samples: int) -> Iterator[Case]:
    size = PlanOptions(context=CONTEXT)
    whole = run_plan(model, replace(size, keep=1.0, quant="Q8_0"))
    for share in SHARES:
        yield Case(
            model, samples, f"ram-{share:g}", replace(size, budget_bytes=_less(whole, share))
        )
    for keep in KEEPS:
        yield Case(model, samples, f"keep-{keep:g}", replace(size, keep=keep, quant="F16"))


def _less(whole: CompressionPlan, share: float) -> int:
    memory = whole.memory
    weights = memory["experts_bytes"] + memory["other_weights_bytes"]
    return round(memory["total_bytes"] - (1 - share) * weights)


def measured(case: Case, work: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The run's row; its calibration is shared by all sizes."""
    statistics = work / "calibration"
    options = CompressOptions(
        statistics=statistics if (statistics / "coverage.json").is_file() else None,
        plan=case.plan,
        calibration=CalibrationOptions(samples=case.samples, seq_len=arguments.seq_len),
        validation=ValidationOptions(
            samples=arguments.eval_samples, seq_len=arguments.eval_seq_len, split=False
        ),
        skip_checkpoint=True,
    )
    output = work / case.name
    result = run_compress(case.model, output, options, TerminalProgress(Console(stderr=True)))
    if options.statistics is None:
        (output / "calibration").rename(statistics)
    assert result.report is not None
    expected = expected_kl(result.plan.record, result.plan.keep_ratio)
    assert expected is not None, "plans of statistics say what they cost"
    low, high = expected.range or (expected.kl, expected.kl)
    kl = result.report.overall.mean_kl
    return {
        "model": arguments.labels[case.model],
        "samples": case.samples,
        "size": case.name,
        "kept": result.plan.keep_ratio,
        "predicted": expected.kl,
        "low": low,
        "high": high,
        "measured": kl,
        "inside": low <= kl <= high,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("models", nargs="+", help="directories, or demo")
    parser.add_argument("--samples", type=int, nargs="+", default=[4, 8, 32])
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--eval-samples", type=int, default=4)
    parser.add_argument("--eval-seq-len", type=int, default=256)
    arguments = parser.parse_args()
    arguments.labels = {
        bundled() if name == DEMO else Path(name): _label(name) for name in arguments.models
    }
    rows = []
    for model, label in arguments.labels.items():
        for samples in arguments.samples:
            work = arguments.output / f"{label}-{samples}"
            for case in cases(model, samples):
                done = work / f"{case.name}.json"
                if not done.is_file():
                    work.mkdir(parents=True, exist_ok=True)
                    done.write_text(json.dumps(measured(case, work, arguments)), encoding="utf-8")
                rows.append(json.loads(done.read_text(encoding="utf-8")))
                print(rows[-1], flush=True)
    inside = sum(row["inside"] for row in rows)
    print(f"{inside} of {len(rows)} inside")
    (arguments.output / "interval.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")


def _label(name: str) -> str:
    path = Path(name).resolve()
    return DEMO if name == DEMO else path.parent.name if path.name == "model" else path.name


if __name__ == "__main__":
    main()
