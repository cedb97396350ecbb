"""Widths and types in one search: what it wins at equal bytes, and how well its losses predict.

    python benchmarks/bench_joint.py --dir DIR                 # the bundled model
    python benchmarks/bench_joint.py --dir DIR --model MODEL --data code=c.jsonl --eval-data ...

For every budget (the weights of the whole model in a llama.cpp mix) the KL in nats to the dense
model, on held-out text, of four files of as many bytes, their weights decoded in memory: the whole
model in that mix, pruned in the best single mix, types of its own without a cut, and both together.
Then random mixed plans and plans along the frontier: the rank correlation of predicted loss and
measured KL. One run, one seed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from records import Table, add_record_flag, write_record

import tenp_edge
from tenp_edge.calibration.storage import Statistics
from tenp_edge.calibration.text.sources import STDLIB
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.evaluation.evaluator import LayerCache
from tenp_edge.evaluation.measured_variants import measure_variants
from tenp_edge.evaluation.mixed_plans import decoded, planner_of
from tenp_edge.evaluation.refine import known_trials
from tenp_edge.evaluation.variants import OtherWeights
from tenp_edge.exporters.base import exporter
from tenp_edge.forward.text_batch import Domain
from tenp_edge.planning.joint.search import Chosen, JointSearch
from tenp_edge.planning.joint.tables import ExpertTable, Tables
from tenp_edge.verbs.calibrate import run_calibrate
from tenp_edge.verbs.measure_types import rounding_of
from tenp_edge.verbs.options import CalibrationOptions, ValidationOptions
from tenp_edge.verbs.token_chunks import validation_domains

DEMO = Path(tenp_edge.__file__).parent / "demo_model"
BUDGETS = ("Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_XXS")
_AT_ONCE = 12  # plans in one pass
_SPREAD = 1.0  # of the logarithm of what random plans multiply losses by


@dataclass(frozen=True)
class Row:
    """``kl`` measured; ``loss`` predicted."""

    name: str
    chosen: Chosen
    keep: float
    kl: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="where files may lie")
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--data", nargs="+", default=[STDLIB])
    parser.add_argument("--eval-data", nargs="+", default=[STDLIB])
    parser.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    parser.add_argument("--samples", type=int, default=32, help="calibration chunks per domain")
    parser.add_argument("--eval-samples", type=int, default=8, help="held-out chunks per domain")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--random", type=int, default=100, help="random mixed plans; 0: no ranks")
    parser.add_argument("--multiple", type=int, default=32, help="of cut widths")
    parser.add_argument("--calibration", type=Path, help="kept (default: made anew)")
    add_record_flag(parser)
    args = parser.parse_args()
    checkpoint = Checkpoint(args.model)
    held = ValidationOptions(tuple(args.eval_data), args.eval_samples, args.seq_len)
    held_out = validation_domains(checkpoint, held)
    args.dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.dir) as scratch:
        work = args.calibration or Path(scratch) / "statistics"
        options = CalibrationOptions(tuple(args.data), args.samples, args.seq_len, dtype="float32")
        started = time.monotonic()
        statistics = run_calibrate(args.model, work, options)
        calibrated = time.monotonic()
        run_calibrate(args.model, work, options, types=True)
        print(
            f"calibrating and probing {calibrated - started:.0f} s, "
            f"types {time.monotonic() - calibrated:.0f} s more"
        )
        bench = _Bench(checkpoint, statistics, held_out, work, args.multiple)
        budgets = bench.budgets(args.budgets)
        ranks = {"ranks": bench.ranks(args.random)} if args.random else {}
        write_record(args.record, joint=budgets, **ranks)


class _Bench:
    def __init__(
        self,
        checkpoint: Checkpoint,
        statistics: Statistics,
        held_out: list[Domain],
        work: Path,
        multiple: int,
    ) -> None:
        self.checkpoint, self.statistics, self.held_out = checkpoint, statistics, held_out
        errors, self.writer = rounding_of(checkpoint, work), exporter("gguf")
        assert errors is not None
        given = self.writer, "per-expert", statistics, errors, known_trials(work)
        self.planner = planner_of(checkpoint, *given, multiple)
        print("factors:", {k: f"{v:.3g}" for k, v in self.planner.factors.groups.items()})
        self.tables = self.planner.tables

    # -- equal bytes -------------------------------------------------------------------------------

    def budgets(self, quants: Sequence[str]) -> Table:
        """A row a budget: KL of four files of as many bytes."""
        table = Table(
            [
                ("the whole model in", "{budget}"),
                ("weights", "{nbytes:size}"),
                ("whole", "{whole:.5f}"),
                ("pruned, one mix", "{pruned:.5f} ({mix}, {pruned_keep:keep})"),
                ("own types, whole", "{types:.5f}"),
                ("own widths and types", "{joint:.5f} ({joint_keep:keep})"),
                ("predicted", "{predicted:.5f}"),
                ("of whole", "{of_whole:.2f}"),
                ("of pruned", "{of_pruned:.2f}"),
            ]
        )
        print(table.head)
        mixes = dict(self.planner.wholes())
        for quant in quants:
            if quant not in mixes:
                continue
            nbytes = mixes[quant].nbytes
            pruned = self._pruned(mixes, nbytes)
            types = JointSearch(_of_widths(self.tables, {self.tables.widths[-1]})).within(nbytes)
            joint = self.planner.search.within(nbytes)
            assert pruned and types and joint
            chosen = {"whole": mixes[quant], "pruned": pruned[1], "types": types, "joint": joint}
            kls = dict(zip(chosen, self.measure(list(chosen.values())), strict=True))
            row = {
                "budget": quant,
                "nbytes": nbytes,
                "mix": pruned[0],
                **kls,
                "pruned_keep": self._keep(pruned[1]),
                "joint_keep": self._keep(joint),
                "predicted": self.planner.kl(joint.loss),
                "of_whole": kls["joint"] / kls["whole"],
                "of_pruned": kls["joint"] / kls["pruned"],
            }
            print(table.add(row), flush=True)
        return table

    def _pruned(self, mixes: dict[str, Chosen], nbytes: float) -> tuple[str, Chosen] | None:
        """The best plan of one mix within ``nbytes``, by predicted loss."""
        found = []
        for name, whole in mixes.items():
            only = _of_types(self.tables, whole)
            chosen = JointSearch(only).within(nbytes)
            if chosen is not None:
                found.append((name, chosen))
        return min(found, key=lambda pair: pair[1].loss, default=None)

    def _keep(self, chosen: Chosen) -> float:
        widths = np.array(self.tables.widths)[chosen.width]
        return float(widths.mean() / self.checkpoint.config.moe_intermediate_size)

    # -- predicted against measured ----------------------------------------------------------------

    def ranks(self, count: int) -> Table:
        """Spearman of predicted loss and measured KL."""
        plans = {"random": list(self._random(count)), "frontier": list(self._frontier())}
        table = Table(
            [
                ("plans", "{name}"),
                ("number", "{number}"),
                ("Spearman", "{rank:.3f}"),
                ("KL / predicted", "{ratio:.2f}"),
                ("sd of its logarithm", "{spread:.2f}"),
            ]
        )
        print(table.head)
        losses: list[float] = []
        kls: list[float] = []
        for name, chosen in plans.items():
            found = self.measure(chosen)
            print(table.add(self._rank(name, [c.loss for c in chosen], found)), flush=True)
            losses += [c.loss for c in chosen]
            kls += found
        print(table.add(self._rank("all", losses, kls)))
        return table

    def _rank(self, name: str, losses: list[float], kls: list[float]) -> dict[str, object]:
        ratios = np.log(np.array(kls) / [self.planner.kl(loss) for loss in losses])
        return {
            "name": name,
            "number": len(kls),
            "rank": _spearman(losses, kls),
            "ratio": float(np.exp(ratios.mean())),
            "spread": float(ratios.std()),
        }

    def _random(self, count: int) -> Iterator[Chosen]:
        """Best plans of tables whose losses are multiplied at random, of random sizes; every fourth
        chooses its types and widths blindly."""
        draw = np.random.default_rng(0)
        smallest, largest = self.planner.search.smallest.nbytes, self.planner.search.largest.nbytes
        for number in range(count):
            nbytes = smallest * (largest / smallest) ** draw.uniform(0.05, 0.9)
            if number % 4 == 3:
                yield self._blind(draw)
                continue
            found = JointSearch(_disturbed(self.tables, draw)).within(nbytes)
            assert found is not None
            yield self.planner.search.priced(found.width, found.gate_up, found.down, found.other)

    def _blind(self, draw: np.random.Generator) -> Chosen:
        """Widths and types without a look at losses, around a random middle."""
        tables, shape = self.tables, self.planner.search.smallest.width.shape
        types, widths = len(tables.types), len(tables.widths)
        low = int(draw.integers(0, max(1, types - 4)))
        least = int(draw.integers(widths // 3, widths))
        width = draw.integers(least, widths, shape)
        gate_up, down = (draw.integers(low, min(low + 6, types), shape) for _ in range(2))
        other = draw.integers(low, min(low + 6, types), len(tables.others.keys))
        return self.planner.search.priced(width, gate_up, down, other)

    def _frontier(self) -> Iterator[Chosen]:
        smallest, largest = self.planner.search.smallest.nbytes, self.planner.search.largest.nbytes
        for part in np.linspace(0.05, 0.95, 24):
            found = self.planner.search.within(smallest * (largest / smallest) ** part)
            assert found is not None
            yield found

    # -- measuring ---------------------------------------------------------------------------------

    def measure(self, chosen: Sequence[Chosen]) -> list[float]:
        """KL of every choice, a few in one pass over the layers."""
        kls: list[float] = []
        for start in range(0, len(chosen), _AT_ONCE):
            cached = LayerCache(self.checkpoint.path)
            given = self.writer, self.planner.options, self.statistics
            plans = map(self.planner.drafted, chosen[start : start + _AT_ONCE])
            variants = [
                OtherWeights(decoded(cached, plan, *given), f"plan {number}")
                for number, plan in enumerate(plans)
            ]
            how = {"device": torch.device("cpu"), "dtype": torch.float32}
            kls += [m.mean_kl for m in measure_variants(cached, variants, self.held_out, **how)]
        return kls


def _of_widths(tables: Tables, widths: set[int]) -> Tables:
    """With every other width out of reach."""
    far = np.array([0.0 if width in widths else 1e30 for width in tables.widths])
    experts = tuple(replace(table, cut=table.cut + far) for table in tables.experts)
    return replace(tables, experts=experts)


def _of_types(tables: Tables, chosen: Chosen) -> Tables:
    """With every other type than the ``chosen`` out of reach."""

    experts = []
    for number, table in enumerate(tables.experts):
        gate_up, down = chosen.gate_up[number], chosen.down[number]
        experts.append(
            replace(table, gate_up=_pinned(table.gate_up, gate_up), down=_pinned(table.down, down))
        )
    far = np.full(tables.others.loss.shape, 1e30)
    far[np.arange(len(far)), chosen.other] = 0.0
    others = replace(tables.others, loss=tables.others.loss + far)
    return replace(tables, experts=tuple(experts), others=others)


def _pinned(losses: np.ndarray, types: np.ndarray) -> np.ndarray:
    """[experts, widths, types] with all but one type of each expert out of reach."""
    far = np.full(losses.shape, 1e30)
    far[np.arange(len(types)), :, types] = 0.0
    return losses + far


def _disturbed(tables: Tables, draw: np.random.Generator) -> Tables:
    def some(shape: tuple[int, ...]) -> np.ndarray:
        return np.exp(draw.normal(0, _SPREAD, shape))

    def one(table: ExpertTable) -> ExpertTable:
        count = len(table.cut)
        return replace(
            table,
            cut=table.cut * some((count, 1)),
            gate_up=table.gate_up * some((count, 1, 1)) * some((1, 1, 1)),
            down=table.down * some((count, 1, 1)) * some((1, 1, 1)),
        )

    others = replace(tables.others, loss=tables.others.loss * some((len(tables.others.keys), 1)))
    return replace(tables, experts=tuple(map(one, tables.experts)), others=others)


def _spearman(left: Sequence[float], right: Sequence[float]) -> float:
    ranks = [np.argsort(np.argsort(values)) for values in (left, right)]
    return float(np.corrcoef(*ranks)[0, 1])


if __name__ == "__main__":
    main()
