"""The whole pipeline on the bundled model, offline, in about a minute on two cores."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType

from tenp_edge.calibration.text.sources import STDLIB
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.model_origin import bundled
from tenp_edge.cli.hub import spoken
from tenp_edge.cli.report import measured_tables, plan_tables, rich_tables
from tenp_edge.cli.report.closing import Closing, closing
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.progress import QUIET, Progress
from tenp_edge.units import format_seconds, format_size, parse_size, percent
from tenp_edge.verbs.compress import CompressResult, run_compress
from tenp_edge.verbs.options import CalibrationOptions, CompressOptions, ValidationOptions
from tenp_edge.verbs.plan import run_plan

KEEP = 0.6
CONTEXT = 1024
# The model as it is (bfloat16), and what it becomes.
WHOLE_QUANT, QUANT = "BF16", "Q8_0"
# The bundled model has read nothing but the standard library: on other text it knows little that
# pruning could lose.
CALIBRATION = CalibrationOptions(data=(STDLIB,), samples=32, seq_len=256)
VALIDATION = ValidationOptions(samples=8, seq_len=256)


@dataclass(frozen=True)
class DemoResult:
    """A finished demo: the compress result, the plan of the model as it is, the wall time, and
    what there is to say in the end."""

    result: CompressResult
    whole: CompressionPlan
    ram: str
    seconds: float
    closing: Closing

    def to_json(self) -> dict[str, Any]:
        return self.result.to_json() | {
            "whole_model_bytes": self.whole.memory["total_bytes"],
            "whole_file_bytes": self.whole.files["model.gguf"],
            "command": self.command,
            "seconds": self.seconds,
            "summary": self.closing.to_json(),
        }

    @property
    def command(self) -> str:
        """The command line that does the same."""
        return (
            f"tenp-edge compress {shlex.quote(spoken(bundled()))} "
            f"--ram {self.ram} --context {CONTEXT} --quant {QUANT} "
            f"--data {STDLIB} --samples {CALIBRATION.samples} --seq-len {CALIBRATION.seq_len} "
            f"--set eval-samples={VALIDATION.samples} --set eval-seq-len={VALIDATION.seq_len} "
            "-o OUT"
        )

    def _memory_rows(self) -> list[tuple[str, str]]:
        """Of a model this small most of the peak is the process (interpreter, libraries,
        vocabulary, graphs), so that is told apart: without a single weight the peak would be 31 %
        less."""
        whole, plan = self.whole.memory, self.result.plan.memory
        above = [memory["total_bytes"] - memory["overhead_bytes"] for memory in (whole, plan)]
        sizes = [made.files["model.gguf"] for made in (self.whole, self.result.plan)]
        return [
            (f"model.gguf ({WHOLE_QUANT} -> {QUANT}, pruned)", _shrunk(*sizes)),
            ("peak memory of `run`, predicted", _shrunk(whole["total_bytes"], plan["total_bytes"])),
            ("  of it the process itself", format_size(plan["overhead_bytes"])),
            ("  of it the model", _shrunk(*above)),
        ]

    def render(self) -> RenderableType:
        plan, checked = self.result.plan, self.result.to_json()["validation"]
        rows = [
            ("RAM budget", self.ram),
            *self._memory_rows(),
            ("neurons of the experts kept", percent(plan.keep_ratio)),
            ("width a token is routed to", percent(plan.record.active_ratio or 0.0)),
            ("mean KL to the whole model", f"{checked['overall']['mean_kl']:.4f} nats"),
            (
                "perplexity",
                f"{checked['overall']['reference_perplexity']:.2f} -> "
                f"{checked['overall']['candidate_perplexity']:.2f}",
            ),
            (
                f"measured peak RSS ({checked['measured_as']})",
                format_size(checked["measured_peak_rss"]),
            ),
            ("time", f"{self.seconds:.0f} s"),
        ]
        return Group(
            plan_tables.widths(plan),
            measured_tables.validation(checked),
            rich_tables.facts("Demo", rows),
        )

    @property
    def saved(self) -> tuple[tuple[str, str], ...]:
        """What the demo is for: how much smaller file and run are than the model as it is."""
        whole, plan = self.whole, self.result.plan
        sizes = [made.files["model.gguf"] for made in (whole, plan)]
        peaks = [made.memory["total_bytes"] for made in (whole, plan)]
        process = format_size(plan.memory["overhead_bytes"])
        return (
            ("saves", f"file {_shrunk(*sizes)}; peak memory {_shrunk(*peaks)}"),
            (
                "",
                f"of the peak {process} are the process itself",
            ),
            ("took", format_seconds(self.seconds)),
        )


def run_demo(output: Path, force: bool = False, progress: Progress = QUIET) -> DemoResult:
    """Compress the bundled model to a RAM budget that 60 % of its experts' neurons fill."""
    start = time.monotonic()
    with as_file(files("tenp_edge") / "demo_model") as model:
        # Pinned: the whole model would fit in fewer bits, and the demo is to show pruning.
        size = PlanOptions(context=CONTEXT, quant=QUANT)
        whole = run_plan(model, replace(size, keep=1.0, quant=WHOLE_QUANT))
        ram = _budget(run_plan(model, replace(size, keep=KEEP)))
        options = CompressOptions(
            calibration=CALIBRATION,
            plan=replace(size, budget_bytes=parse_size(ram)),
            validation=VALIDATION,
            force=force,
        )
        result = run_compress(model, output, options, progress)
        last = closing(bundled(), output, result.plan, result.to_json()["validation"])
    another = "your own model", "tenp-edge compress PATH/TO/YOUR/MODEL --ram 8GiB -o OUT"
    made = DemoResult(result, whole, ram, time.monotonic() - start, last)
    commands = (*last.commands, ("the same by hand", made.command), another)
    last = replace(last, commands=commands, others=made.saved)
    return replace(made, closing=last)


def _shrunk(before: int, after: int) -> str:
    less = 1 - after / before
    return f"{format_size(before)} -> {format_size(after)}, {percent(less, 0)} less"


def _budget(plan: CompressionPlan) -> str:
    """The plan's peak as a person would write it: the next tenth of a MiB."""
    return f"{-(-plan.memory['total_bytes'] * 10 // 2**20) / 10:.1f}MiB"
