"""ONNX at equal bytes: types and widths in one search against one type, KL in onnxruntime.

    python benchmarks/bench_onnx_types.py --dir DIR                # the bundled model, ten minutes
    python benchmarks/bench_onnx_types.py --dir DIR --model MODEL

For each mode and three numbers of bytes (the weights of the whole model in int8 and in int4, and in
int4 with half of the neurons): the KL in nats to the dense model, on held-out text, of directories
of at most as many bytes, run in onnxruntime. "int8" and "int4": that type everywhere, and as many
neurons as fit. "auto": what `--quant auto` chooses; "one type": the same search with int8 or int4
alone (the better of the two), which so has auto's own encoder and its small embedding table,
too. Nothing is repaired; one run, one seed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from records import Table, add_record_flag, write_record

import tenp_edge
from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import Statistics
from tenp_edge.calibration.text.sources import STDLIB
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.evaluation.mixed_plans import planner_of
from tenp_edge.evaluation.refine import known_trials
from tenp_edge.evaluation.validation import validate
from tenp_edge.exporters.base import ExportData, ExportOptions, exporter
from tenp_edge.forward.text_batch import Domain
from tenp_edge.planning.joint.plan import JointPlanner
from tenp_edge.planning.joint.search import Chosen, JointSearch
from tenp_edge.planning.joint.tables import Tables
from tenp_edge.planning.options.devices import this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan
from tenp_edge.progress import QUIET
from tenp_edge.verbs.calibrate import run_calibrate
from tenp_edge.verbs.measure_types import rounding_into, rounding_job
from tenp_edge.verbs.options import CalibrationOptions, ValidationOptions
from tenp_edge.verbs.token_chunks import validation_domains

DEMO = Path(tenp_edge.__file__).parent / "demo_model"
ONNX = exporter("onnx")
TYPES = ("int8", "int4")
_STEPS = 12  # of a bisection of the share of neurons


@dataclass(frozen=True)
class Written:
    """A directory: its plan, how it is written, and the bytes of its weights."""

    plan: CompressionPlan
    options: ExportOptions
    nbytes: int


class Bench:
    def __init__(
        self, checkpoint: Checkpoint, statistics: Statistics, work: Path, held_out: list[Domain]
    ) -> None:
        self.checkpoint, self.statistics = checkpoint, statistics
        self.work, self.held_out = work, held_out

    def table(self, modes: list[str]) -> Table:
        """A row a mode and number of bytes."""
        table = Table(
            [
                ("mode", "{mode}"),
                ("bytes of", "{budget}"),
                ("weights", "{nbytes:size}"),
                *((f"{q}, neurons kept", f"{{{q}:.4f}} ({{{q} kept:keep}})") for q in TYPES),
                ("one type of the search", "{one:.4f} ({one type}, {one kept:keep})"),
                ("auto, neurons kept", "{auto:.4f} ({auto kept:keep})"),
                ("predicted", "{predicted:.4f}"),
                ("auto of the best other", "{share:.2f}"),
            ]
        )
        print(table.head)
        for mode in modes:
            planner = self._planner(mode)
            for budget, nbytes in self._budgets(mode).items():
                print(table.add(self._row(planner, mode, budget, nbytes)), flush=True)
        return table

    def _planner(self, mode: str) -> JointPlanner:
        job = rounding_job(ONNX, ExportOptions("none", mode, imatrix=True))
        assert job is not None
        compute = CalibrationOptions(dtype="float32")
        errors = rounding_into(self.checkpoint, job, self.statistics, self.work, compute, QUIET)
        print(f"rounding was measured in {errors.seconds:.0f} s")
        trials = known_trials(self.work)
        return planner_of(self.checkpoint, ONNX, mode, self.statistics, errors, trials)

    def _budgets(self, mode: str) -> dict[str, int]:
        return {
            "int8, whole": self._of_one(mode, "int8", 1.0).nbytes,
            "int4, whole": self._of_one(mode, "int4", 1.0).nbytes,
            "int4, half": self._of_one(mode, "int4", 0.5).nbytes,
        }

    def _row(self, planner: JointPlanner, mode: str, budget: str, nbytes: int) -> dict[str, Any]:
        row: dict[str, Any] = {"mode": mode, "budget": budget, "nbytes": nbytes}
        for quant in TYPES:
            found = self._largest(lambda keep, q=quant: self._of_one(mode, q, keep), nbytes)
            if found is not None:
                row |= {quant: self._kl(found), f"{quant} kept": found.plan.keep_ratio}
        found = {kind: self._only(planner, mode, nbytes, kind) for kind in TYPES}
        kls = {kind: self._kl(one) for kind, one in found.items() if one is not None}
        kind = min(kls, key=kls.__getitem__)
        one = found[kind]
        assert one is not None
        row |= {"one": kls[kind], "one type": kind, "one kept": one.plan.keep_ratio}
        chosen = self._within(planner, mode, nbytes, planner.search)
        assert chosen is not None
        written, row["predicted"] = self._typed(planner, mode, chosen), planner.kl(chosen.loss)
        row |= {"auto": self._kl(written), "auto kept": written.plan.keep_ratio}
        best = min((quant for quant in TYPES if quant in row), key=row.__getitem__)
        return row | {"share": row["auto"] / row[best], "bold": ["auto"]}

    def _largest(self, make: Callable[[float], Written], nbytes: int) -> Written | None:
        """The one of most neurons within ``nbytes``."""
        whole = make(1.0)
        if whole.nbytes <= nbytes:
            return whole
        low, high, best = 0.1, 1.0, None
        for _ in range(_STEPS):
            middle = (low + high) / 2
            found = make(middle)
            if found.nbytes <= nbytes:
                low, best = middle, found
            else:
                high = middle
        return best

    def _of_one(self, mode: str, quant: str, keep: float) -> Written:
        request = PlanOptions(format="onnx", layout=mode, quant=quant, keep=keep, context=256)
        plan = make_plan(self.checkpoint, this_machine(), request, self.statistics)
        return self._written(plan, ExportOptions(quant, mode))

    def _only(self, planner: JointPlanner, mode: str, nbytes: int, kind: str) -> Written | None:
        """In one type; None where no plan fits."""
        rules, most = planner.rules, planner.spec.target.most_widths
        search = JointSearch(_of_type(planner.tables, kind), alike=rules.alike, most=most)
        chosen = self._within(planner, mode, nbytes, search)
        return chosen and self._typed(planner, mode, chosen)

    def _within(
        self, planner: JointPlanner, mode: str, nbytes: int, search: JointSearch
    ) -> Chosen | None:
        """Of a search, whose bytes are those of the matrices that have a choice."""
        smallest = planner.search.smallest
        besides = self._typed(planner, mode, smallest).nbytes - smallest.nbytes
        return search.within(nbytes - besides)

    def _typed(self, planner: JointPlanner, mode: str, chosen: Chosen) -> Written:
        plan = planner.drafted(chosen)
        return self._written(plan, ExportOptions("auto", mode, True, types=plan.file_types))

    def _written(self, plan: CompressionPlan, options: ExportOptions) -> Written:
        config = ModelSource(self.checkpoint, plan).config
        manifest = ONNX.manifest(self.checkpoint, config, options)
        return Written(plan, options, manifest.weight_bytes)

    def _kl(self, written: Written) -> float:
        """Of the directory, in onnxruntime."""
        target, plan = self.work / "onnx", written.plan
        shutil.rmtree(target, ignore_errors=True)
        data = ExportData(Importance(self.statistics, plan) if written.options.imatrix else None)
        ONNX.write(ModelSource(self.checkpoint, plan), written.options, target, data)
        report = validate(self.checkpoint.path, target, self.held_out, device="cpu", split=False)
        shutil.rmtree(target)
        return report.overall.mean_kl


def _of_type(tables: Tables, kind: str) -> Tables:
    """Every matrix in ``kind``."""
    at, count = tables.types.index(kind), len(tables.types)
    closed = np.where(np.arange(count) == at, 0.0, 1e30)
    experts = tuple(
        replace(table, gate_up=table.gate_up + closed, down=table.down + closed)
        for table in tables.experts
    )
    others = replace(tables.others, loss=tables.others.loss + closed)
    return replace(tables, experts=experts, others=others)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where files may lie")
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--modes", nargs="+", default=["portable", "ort-cpu"])
    parser.add_argument("--samples", type=int, default=32, help="calibration chunks per domain")
    parser.add_argument("--eval-samples", type=int, default=8, help="held-out chunks per domain")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--calibration", type=Path, help="kept (default: made anew)")
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
        bench = Bench(checkpoint, statistics, work, held_out)
        write_record(args.record, types=bench.table(args.modes))


if __name__ == "__main__":
    main()
