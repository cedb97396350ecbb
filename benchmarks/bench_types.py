"""Types against neurons at equal memory: KL of the exported file for every type in one budget.

    python benchmarks/bench_types.py --dir DIR                # the bundled model, ten minutes
    python benchmarks/bench_types.py --dir DIR --model MODEL --method free

For each budget (what the file with Q8_0 takes at a keep ratio) and type: the plan that fits, and
the KL in nats to the dense model on held-out text of the weights that its file holds, decoded (with
--files: of the file in its own runtime, which takes several times as long); one run, one seed.
Beside it what `plan` predicts, pruning and type together, from the calibration alone. Bold: the
least measured; *: what the joint search chooses.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from records import Table, add_record_flag, write_record

import tenp_edge
from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import Statistics
from tenp_edge.calibration.text.sources import STDLIB
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.evaluation.evaluator import LayerCache
from tenp_edge.evaluation.measured_variants import measure_variants
from tenp_edge.evaluation.validation import validate
from tenp_edge.evaluation.variants import OtherWeights
from tenp_edge.exporters.base import ExportData, ExportOptions, Requantiser, exporter
from tenp_edge.forward.text_batch import Domain
from tenp_edge.planning.measured.kl_law import together_kl
from tenp_edge.planning.measured.type_costs import TypeCosts
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan
from tenp_edge.progress import QUIET
from tenp_edge.verbs.calibrate import run_calibrate
from tenp_edge.verbs.measure_types import default_job, types_into
from tenp_edge.verbs.options import CalibrationOptions, ValidationOptions
from tenp_edge.verbs.token_chunks import validation_domains

DEMO = Path(tenp_edge.__file__).parent / "demo_model"
CONTEXT = 512


@dataclass(frozen=True)
class Cell:
    """One type in one budget: ``measured`` KL of the file, ``predicted`` by pruning and type."""

    quant: str
    keep_ratio: float
    measured: float
    predicted: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where the files may lie")
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--method", default="tenp")
    parser.add_argument(
        "--types",
        nargs="+",
        default=["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K"],
    )
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.9, 0.75, 0.6, 0.45])
    parser.add_argument("--samples", type=int, default=32, help="calibration chunks per domain")
    parser.add_argument("--eval-samples", type=int, default=8, help="held-out chunks per domain")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument(
        "--calibration", type=Path, help="kept from run to run (default: made anew)"
    )
    parser.add_argument("--files", action="store_true", help="write each file and run it")
    add_record_flag(parser)
    args = parser.parse_args()
    checkpoint = Checkpoint(args.model)
    held = ValidationOptions((STDLIB,), args.eval_samples, args.seq_len)
    held_out = validation_domains(checkpoint, held)
    args.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.dir) as scratch:
        work = args.calibration or Path(scratch) / "statistics"
        options = CalibrationOptions((STDLIB,), args.samples, args.seq_len, dtype="float32")
        statistics = run_calibrate(args.model, work, options)
        job = replace(default_job(), quants=tuple(args.types))
        costs = types_into(checkpoint, job, statistics, work, options, QUIET)
        scratch_or_none = Path(scratch) if args.files else None
        bench = _Bench(checkpoint, statistics, costs, held_out, args.method, scratch_or_none)
        write_record(args.record, types=bench.table(args.types, args.keeps))


class _Bench:
    def __init__(
        self,
        checkpoint: Checkpoint,
        statistics: Statistics,
        costs: TypeCosts,
        held_out: list[Domain],
        method: str,
        work: Path | None,
    ) -> None:
        """``work``: where files are written to be run; None: weights are decoded in memory."""
        self.checkpoint, self.statistics, self.costs = checkpoint, statistics, costs
        self.held_out, self.method, self.work = held_out, method, work
        self._known: dict[tuple[str, str], float] = {}

    def table(self, types: Sequence[str], keeps: Sequence[float]) -> Table:
        """A row a budget; cells: KL measured / predicted (neurons kept)."""
        whole = ", ".join(f"{quant} {self.costs.kl(quant):.4f}" for quant in types)
        print(f"method {self.method}; predicted KL of the whole model: {whole}\n")
        table, everything = Table(columns(types)), list[Cell]()
        print(table.head)
        for keep in keeps:
            budget, size = _budget(self.checkpoint, self.statistics, self.method, keep)
            cells = self._cells(types, budget)
            chosen = self._plan(budget, None).record.quant
            there = [cell for cell in cells if cell is not None]
            print(table.add({"keep": keep, "file": size, **_row(there, chosen)}), flush=True)
            everything += there
        print(f"\nSpearman of predicted and measured, {len(everything)} cells:", _rank(everything))
        return table

    def _plan(self, budget: int, quant: str | None) -> CompressionPlan:
        request = PlanOptions(budget_bytes=budget, method=self.method, quant=quant, context=CONTEXT)
        return make_plan(
            self.checkpoint, this_machine(), request, self.statistics, costs=self.costs
        )

    def _cells(self, types: Sequence[str], budget: int) -> list[Cell | None]:
        plans: dict[str, CompressionPlan] = {}
        for quant in types:
            with contextlib.suppress(UserError):  # does not fit
                plans[quant] = self._plan(budget, quant)
        new = {q: p for q, p in plans.items() if (q, p.digest) not in self._known}
        measure = self._of_weights if self.work is None else self._of_files
        for quant, kl in zip(new, measure(list(new.values())), strict=True):
            self._known[quant, new[quant].digest] = kl
        return [self._cell(quant, plans[quant]) if quant in plans else None for quant in types]

    def _cell(self, quant: str, plan: CompressionPlan) -> Cell:
        predicted = together_kl(plan.record.predicted_kl, plan.record.type_kl)
        return Cell(quant, plan.keep_ratio, self._known[quant, plan.digest], predicted)

    def _of_weights(self, plans: Sequence[CompressionPlan]) -> list[float]:
        """All of one row in one pass over the layers."""
        cached, writer, variants = LayerCache(self.checkpoint.path), exporter("gguf"), []
        assert isinstance(writer, Requantiser)
        for number, plan in enumerate(plans):
            data = ExportData(Importance(self.statistics, plan))
            stored = writer.requantised(ModelSource(cached, plan), _options(plan), data)
            variants.append(OtherWeights(stored, f"plan {number}"))
        how = {"device": torch.device("cpu"), "dtype": torch.float32}
        found = measure_variants(cached, variants, self.held_out, **how) if variants else []
        return [measured.mean_kl for measured in found]

    def _of_files(self, plans: Sequence[CompressionPlan]) -> list[float]:
        assert self.work is not None
        found, file = [], self.work / "model.gguf"
        for plan in plans:
            data = ExportData(Importance(self.statistics, plan))
            exporter("gguf").write(ModelSource(self.checkpoint, plan), _options(plan), file, data)
            checked = validate(self.checkpoint.path, file, self.held_out, device="cpu", split=False)
            found.append(checked.overall.mean_kl)
        return found


def _options(plan: CompressionPlan) -> ExportOptions:
    return ExportOptions(plan.record.quant, plan.record.layout, plan.record.imatrix)


def columns(types: Sequence[str]) -> list[tuple[str, str]]:
    """A type that does not fit leaves its cell empty."""
    cells = [
        (q, f"{{{q}:.4f}}{{{q} mark}} / {{{q} predicted:.4f}} ({{{q} kept:keep}})") for q in types
    ]
    return [("Q8_0 at", "{keep:.0%}"), ("file", "{file:size}"), *cells]


def _row(cells: Sequence[Cell], chosen: str) -> dict[str, Any]:
    best = min(cells, key=lambda cell: cell.measured)
    row: dict[str, Any] = {"bold": [best.quant]}
    for cell in cells:
        row[cell.quant] = cell.measured
        row[f"{cell.quant} mark"] = "*" if cell.quant == chosen else ""
        row[f"{cell.quant} predicted"] = cell.predicted
        row[f"{cell.quant} kept"] = cell.keep_ratio
    return row


def _rank(cells: Sequence[Cell]) -> str:
    measured = torch.tensor([cell.measured for cell in cells]).double().argsort().argsort()
    predicted = torch.tensor([cell.predicted for cell in cells]).double().argsort().argsort()
    return f"{torch.corrcoef(torch.stack([measured, predicted]).double())[0, 1]:.3f}"


def _budget(
    checkpoint: Checkpoint, statistics: Statistics, method: str, keep: float
) -> tuple[int, int]:
    """Peak memory and file size of Q8_0 at ``keep``, bytes."""
    request = PlanOptions(keep=keep, method=method, quant="Q8_0", context=CONTEXT)
    plan = make_plan(checkpoint, this_machine(), request, statistics)
    return int(plan.memory["total_bytes"]), plan.files["model.gguf"]


if __name__ == "__main__":
    main()
