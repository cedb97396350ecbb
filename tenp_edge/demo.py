"""The whole pipeline on the bundled model, offline, in about a minute on two cores."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from tenp_edge import report
from tenp_edge.closing import Closing, closing
from tenp_edge.options import (
    CalibrationOptions,
    CompressOptions,
    PlanOptions,
    ValidationOptions,
)
from tenp_edge.pipeline import CompressResult, run_compress
from tenp_edge.plan import CompressionPlan
from tenp_edge.progress import QUIET, Progress
from tenp_edge.sources import STDLIB
from tenp_edge.units import format_size
from tenp_edge.verbs import run_plan

KEEP = 0.6
CONTEXT = 512
# The bundled model has read nothing but the standard library: on other text it knows little that
# pruning could lose.
CALIBRATION = CalibrationOptions(data=(STDLIB,), samples=32, seq_len=256)
VALIDATION = ValidationOptions(samples=8, seq_len=256)


@dataclass(frozen=True)
class DemoResult:
    """A finished demo: the compress result, the whole model's size, the wall time, and what there
    is to say in the end."""

    result: CompressResult
    whole: CompressionPlan
    ram: str
    seconds: float
    closing: Closing

    def to_json(self) -> dict[str, Any]:
        return self.result.to_json() | {
            "whole_model_bytes": self.whole.memory["total_bytes"],
            "seconds": self.seconds,
            "summary": self.closing.to_json(),
        }

    def render(self) -> RenderableType:
        plan, checked = self.result.plan, self.result.to_json()["validation"]
        rows = [
            ("RAM budget", self.ram),
            ("whole model would need", format_size(self.whole.memory["total_bytes"])),
            ("model.gguf", f"{self.whole.files['model.gguf']:,} -> {plan.files['model.gguf']:,} B"),
            ("routed-expert neurons kept (rho)", report.percent(plan.keep_ratio)),
            ("active per token (R_active)", report.percent(plan.recipe["active_ratio"])),
            ("mean KL to the whole model", f"{checked['overall']['mean_kl']:.4f} nats"),
            (
                "perplexity",
                f"{checked['overall']['reference_perplexity']:.2f} -> "
                f"{checked['overall']['candidate_perplexity']:.2f}",
            ),
            ("predicted peak RSS", format_size(checked["predicted_peak_rss"])),
            (
                f"measured peak RSS ({checked['measured_as']})",
                format_size(checked["measured_peak_rss"]),
            ),
            ("time", f"{self.seconds:.0f} s"),
        ]
        return Group(
            report.widths(plan),
            report.validation(checked),
            report.facts("Demo", rows),
        )


def run_demo(output: Path, force: bool = False, progress: Progress = QUIET) -> DemoResult:
    """Compress the bundled model to a RAM budget that 60 % of its experts' neurons fill."""
    start = time.monotonic()
    with as_file(files("tenp_edge") / "demo_model") as model:
        # Pinned: the whole model would fit in fewer bits, and the demo is to show pruning.
        size = PlanOptions(context=CONTEXT, quant="Q8_0")
        whole = run_plan(model, replace(size, keep=1.0))
        ram = _budget(run_plan(model, replace(size, keep=KEEP)))
        options = CompressOptions(
            calibration=CALIBRATION,
            plan=replace(size, ram=ram),
            validation=VALIDATION,
            force=force,
        )
        result = run_compress(model, output, options, progress)
        last = closing(model, output, result.plan, result.to_json()["validation"])
    own = "your own model", "tenp-edge compress PATH/TO/YOUR/MODEL --ram 8GiB -o OUT"
    last = replace(last, commands=(*last.commands, own))
    return DemoResult(result, whole, ram, time.monotonic() - start, last)


def _budget(plan: CompressionPlan) -> str:
    """The plan's peak as a person would write it: the next tenth of a MiB."""
    return f"{-(-plan.memory['total_bytes'] * 10 // 2**20) / 10:.1f}MiB"
