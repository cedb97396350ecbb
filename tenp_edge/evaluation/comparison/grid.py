"""The comparison: every method at every ratio and calibration seed, measured and written down.

compare.json grows by one keep ratio at a time; the same call continues after a kill.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.evaluation.comparison.compared_methods import Case, Contender, Cut, Mend
from tenp_edge.evaluation.comparison.measures import Measure
from tenp_edge.evaluation.evaluator import Evaluator, LayerCache
from tenp_edge.evaluation.variants import Planned, Variant
from tenp_edge.planning.budget.allocators import Drop
from tenp_edge.planning.measured.trials import Trial
from tenp_edge.progress import QUIET, Progress, begin
from tenp_edge.resumable import JobRecord

FORMAT, VERSION = "tenp-edge comparison", 1
MENDED = "mended.partial"  # beside compare.json: weights of the ratio that is being measured


@dataclass(frozen=True)
class Comparison:
    """What is compared. ``statistics``: by calibration seed; ``measures``: kind -> measures of
    that kind ("text", "cloze", "arithmetic"), one a domain; ``about`` is recorded as it is;
    ``mend``: by calibration seed, for methods that need the calibration's text; ``trials``: by
    calibration seed, what was measured on text held out from it."""

    checkpoint: Checkpoint
    methods: Sequence[Contender]
    ratios: Sequence[float]
    statistics: Mapping[int, Statistics]
    measures: Mapping[str, Sequence[Measure]]
    width_multiple: int
    about: Mapping[str, Any]
    mend: Mapping[int, Mend] = field(default_factory=dict)
    trials: Mapping[int, Sequence[Trial]] = field(default_factory=dict)

    def cases(self) -> list[Case]:
        """What the methods build from, one a calibration seed."""
        return [
            Case(
                self.checkpoint,
                statistics,
                self.width_multiple,
                seed,
                self.mend.get(seed),
                self.trials.get(seed, ()),
            )
            for seed, statistics in self.statistics.items()
        ]

    @property
    def key(self) -> str:
        """Identity of everything that a row depends on, but for the ratio."""
        state = hashlib.sha256(self.checkpoint.fingerprint.encode())
        parts = [
            [m.name for m in self.methods],
            {s: dict(stats.info) for s, stats in self.statistics.items()},
            {
                s: [(dict(t.changes), t.mean_kl) for t in trials]
                for s, trials in self.trials.items()
            },
            self.width_multiple,
            dict(self.about),
        ]
        state.update(json.dumps(parts, sort_keys=True).encode())
        for measures in self.measures.values():
            for measure in measures:
                state.update(measure.block.tokens.numpy().tobytes())
        return state.hexdigest()[:32]


def compare(
    comparison: Comparison,
    file: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress = QUIET,
) -> dict[str, Any]:
    """The comparison as JSON values, written to ``file``; ratios that are there are kept."""
    evaluator = Evaluator(
        LayerCache(comparison.checkpoint.path),
        device=device,
        dtype=dtype,
        work=file.parent,
        progress=progress,
    )
    record = _record(comparison, file, f"{device}", str(dtype).removeprefix("torch."))
    result = record.state()
    cases = comparison.cases()
    done = [
        keep for keep in comparison.ratios if any(row["keep"] == keep for row in result["rows"])
    ]
    if done:
        what = "nothing to do" if len(done) == len(comparison.ratios) else "continuing"
        progress.note(f"{what}: {', '.join(f'keep {keep:g}' for keep in done)} done")
    for keep in comparison.ratios:
        if keep in done:
            continue
        begin(progress, f"keep {keep:g}")
        neurons = budget(cases[0], keep)
        cuts = [(m, case, m.build(case, neurons)) for m in comparison.methods for case in cases]
        all_scores = measure(
            evaluator, [cut.candidate for _, _, cut in cuts], comparison.measures, f"keep {keep:g}"
        )
        if not result["dense"]:
            result["dense"] = all_scores[0]
        result["rows"] += [
            {"method": m.name, "keep": keep, "seed": case.seed, **_facts(case, cut), **scores}
            for (m, case, cut), scores in zip(cuts, all_scores[1:], strict=True)
        ]
        record.write(result)
        # Mended weights serve one ratio, and are a good part of a model each.
        shutil.rmtree(file.parent / MENDED, ignore_errors=True)
    return result


def budget(case: Case, keep: float) -> int:
    """Neurons at ratio ``keep``: what removing whole experts can keep, so that all methods share
    one number of bytes."""
    return Drop(case.space, case.checkpoint.config, None).neurons_at(keep)


def measure(
    evaluator: Evaluator,
    variants: Sequence[Variant],
    measures: Mapping[str, Sequence[Measure]],
    title: str = "comparing",
) -> list[dict[str, Any]]:
    """Scores of the dense model, then of every variant: kind -> domain -> values, and the mean
    over the domains."""
    flat = [(kind, m) for kind, row in measures.items() for m in row]
    scores: list[dict[str, Any]] = [{} for _ in range(1 + len(variants))]
    blocks = [m.block for _, m in flat]
    # The dense model is measured like the others: its KL to itself is a check, its tasks a row.
    scored = evaluator.measure([Planned(), *variants], blocks, title)
    for (kind, part), (_, rows) in zip(flat, scored, strict=True):
        for values, row_scores in zip(scores, rows, strict=True):
            values.setdefault(kind, {})[part.block.name] = part.result(row_scores)
    return [{**values, "overall": _overall(values)} for values in scores]


def _overall(values: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, float]:
    """Means over the domains, each counting the same: of KL, log perplexity ratio and shares."""
    means: dict[str, float] = {}
    for name in ("mean_kl", "same_top"):
        means[name] = _mean(row[name] for row in values["text"].values())
    ratios = [torch.tensor(row["perplexity_ratio"]).log() for row in values["text"].values()]
    means["perplexity_ratio"] = float(torch.stack(ratios).mean().exp())
    for kind, name in (("cloze", "accuracy"), ("arithmetic", "exact_answers")):
        if values.get(kind):
            means[f"{kind}_{name}"] = _mean(row[name] for row in values[kind].values())
    return means


def _mean(values: Iterator[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _facts(case: Case, cut: Cut) -> dict[str, Any]:
    config, size = case.checkpoint.config, case.checkpoint.dtype.itemsize
    total = len(config.family.matrices) * config.hidden_size * size * case.space.total_neurons
    return {
        "kept": cut.kept,
        "expert_bytes": round(cut.stored * total),
        "active_ratio": cut.active_ratio,
        "predicted_loss": cut.predicted_loss,
    }


def _record(comparison: Comparison, file: Path, device: str, dtype: str) -> JobRecord:
    """compare.json: what is compared, and the rows that are done."""
    config = comparison.checkpoint.config
    empty = {
        "model": str(comparison.checkpoint.path),
        "model_type": config.family.model_type,
        "fingerprint": comparison.checkpoint.fingerprint,
        "experts": config.num_experts,
        "width": config.moe_intermediate_size,
        "seeds": list(comparison.statistics),
        "device": device,
        "dtype": dtype,
        **comparison.about,
        "dense": {},
        "rows": [],
    }
    identity = {"format": FORMAT, "version": VERSION, "key": comparison.key}
    return JobRecord(file, identity, empty, f"another -o, or delete {file}")
