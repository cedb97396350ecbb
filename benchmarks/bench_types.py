"""Types against neurons at equal memory: KL of the exported file for every type in one budget.

    python benchmarks/bench_types.py --dir DIR                # the bundled model, ten minutes
    python benchmarks/bench_types.py --dir DIR --model MODEL --method free

For each budget (what the file with Q8_0 takes at a keep ratio) and type: the plan that fits, the
file, and its KL in nats to the dense model on held-out text, in its own runtime; one run, one seed.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tenp_edge
from tenp_edge.calibration import calibrate
from tenp_edge.checkpoint import Checkpoint
from tenp_edge.data import Domain, default_texts, load_tokenizer, make_domains
from tenp_edge.devices import this_machine
from tenp_edge.errors import UserError
from tenp_edge.importance import Importance
from tenp_edge.planner import PlanRequest, make_plan
from tenp_edge.progress import QUIET
from tenp_edge.registry import ExportOptions, exporter
from tenp_edge.source import ModelSource
from tenp_edge.statistics import Statistics
from tenp_edge.validation import validate

DEMO = Path(tenp_edge.__file__).parent / "demo_model"
CONTEXT = 512


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
    args = parser.parse_args()
    checkpoint, tokenizer = Checkpoint(args.model), load_tokenizer(args.model)
    sizes = (tokenizer, args.samples, args.seq_len, 0)
    drawn = make_domains(default_texts("calibration"), *sizes)
    held_out = make_domains(default_texts("heldout"), tokenizer, args.eval_samples, args.seq_len, 0)
    with tempfile.TemporaryDirectory(dir=args.dir) as work:
        statistics = calibrate(checkpoint, drawn, Path(work) / "statistics", dtype="float32")
        print(f"method {args.method}; cells: KL (neurons kept)\n")
        print("| file |", " | ".join(args.types), "|")
        print("|---|" + "---|" * len(args.types))
        for keep in args.keeps:
            budget, size = _budget(checkpoint, statistics, args.method, keep)
            cells = _cells(
                checkpoint, statistics, held_out, args.method, args.types, budget, Path(work)
            )
            print(f"| {size / 2**20:.2f} MiB |", " | ".join(cells), "|", flush=True)


def _budget(
    checkpoint: Checkpoint, statistics: Statistics, method: str, keep: float
) -> tuple[int, int]:
    """Peak memory and file size of Q8_0 at ``keep``, bytes."""
    request = PlanRequest(keep=keep, method=method, quant="Q8_0", context=CONTEXT)
    plan = make_plan(checkpoint, this_machine(), request, statistics)
    return int(plan.memory["total_bytes"]), plan.files["model.gguf"]


def _cells(
    checkpoint: Checkpoint,
    statistics: Statistics,
    held_out: list[Domain],
    method: str,
    types: Sequence[str],
    budget: int,
    work: Path,
) -> list[str]:
    cells = []
    for quant in types:
        request = PlanRequest(budget_bytes=budget, method=method, quant=quant, context=CONTEXT)
        try:
            plan = make_plan(checkpoint, this_machine(), request, statistics)
        except UserError:
            cells.append("does not fit")
            continue
        recipe, file = plan.recipe, work / "model.gguf"
        options = ExportOptions(quant, recipe["layout"], recipe["imatrix"])
        source = ModelSource(checkpoint, plan, Importance(statistics, plan))
        exporter("gguf").write(source, options, file, QUIET)
        found = validate(checkpoint.path, file, held_out, device="cpu").overall
        cells.append(f"{found.mean_kl:.4f} ({100 * plan.keep_ratio:.0f} %)")
    return cells


if __name__ == "__main__":
    main()
