"""Every way at every budget, measured and written down: matched.json.

A file is measured once, whatever the number of budgets and ways that lead to it, and is recorded
as soon as the pass that measured it is done; the same call continues after a kill.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.evaluation.comparison.compared_methods import Mend
from tenp_edge.evaluation.comparison.grid import MENDED, measure
from tenp_edge.evaluation.comparison.measures import Measure
from tenp_edge.evaluation.evaluator import Evaluator, LayerCache
from tenp_edge.evaluation.matched.calibrated import Calibrated
from tenp_edge.evaluation.matched.filled import Budget, Filled, whole
from tenp_edge.evaluation.matched.ways import Way
from tenp_edge.evaluation.variants import OtherWeights
from tenp_edge.exporters.base import ExportData, Exporter, Requantiser
from tenp_edge.planning.measured.rounding_errors import RoundingErrors
from tenp_edge.planning.measured.trials import Trial
from tenp_edge.progress import QUIET, Progress, begin
from tenp_edge.resumable import JobRecord

FORMAT, VERSION = "tenp-edge matched comparison", 1
WHOLE = "whole"  # the whole model in every type, which all ways go by
# Speed and memory of a file as it runs: JSON values.
RunFile = Callable[[Filled, Statistics], dict[str, Any]]


@dataclass(frozen=True)
class Matched:
    """What is compared. ``types``: those of the rows of one type. By calibration seed:
    ``statistics``, ``mend``, ``trials`` and ``rounding``, as in `Calibrated`; ``about`` is recorded
    as it is."""

    checkpoint: Checkpoint
    writer: Exporter
    budgets: Sequence[Budget]
    ways: Sequence[Way]
    types: Sequence[str]
    statistics: Mapping[int, Statistics]
    measures: Mapping[str, Sequence[Measure]]
    mend: Mapping[int, Mend]
    trials: Mapping[int, Sequence[Trial]]
    rounding: Mapping[int, RoundingErrors]
    about: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Identity of all that a measurement depends on besides the file that is measured."""
        parts = [
            self.checkpoint.fingerprint,
            {seed: dict(stats.info) for seed, stats in self.statistics.items()},
            dict(self.about),
        ]
        state = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        for measures in self.measures.values():
            for one in measures:
                state.update(one.block.tokens.numpy().tobytes())
        return state.hexdigest()[:32]

    def calibrated(self, seed: int, whole_kl: Mapping[str, float]) -> Calibrated:
        return Calibrated(
            self.checkpoint,
            self.writer,
            self.statistics[seed],
            seed,
            whole_kl,
            self.mend.get(seed),
            self.trials.get(seed, ()),
            self.rounding.get(seed),
        )


def compare_matched(
    matched: Matched,
    file: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress = QUIET,
    run_file: RunFile | None = None,
) -> dict[str, Any]:
    """The comparison as JSON values, written to ``file``; what is measured there is kept.

    ``run_file``: also run the file of every row. Raises UserError for a format whose types cannot
    be measured.
    """
    if not isinstance(matched.writer, Requantiser):
        raise UserError(
            f"format {matched.writer.format} cannot say what its types cost", "--format gguf"
        )
    job = _Job(matched, file, device, dtype, progress, run_file)
    for seed in matched.statistics:
        calibrated = job.with_whole_types(seed)
        for budget in matched.budgets:
            job.fill(calibrated, budget)
    return job.result()


def measuring_stage(what: str, seed: int) -> str:
    """What the pass over ``what``, a budget's name or `WHOLE`, is called: there is one a seed."""
    return f"{what}, seed {seed}"


class _Job:
    """``scores``: of every file by its key, and of the dense model by "dense"; ``rows`` by the
    seed and the bytes of their budget."""

    def __init__(
        self,
        matched: Matched,
        file: Path,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress,
        run_file: RunFile | None,
    ) -> None:
        self.matched, self.progress, self.run_file = matched, progress, run_file
        self.mended = file.parent / MENDED
        self.cache = LayerCache(matched.checkpoint.path)
        self.evaluator = Evaluator(
            self.cache, device=device, dtype=dtype, work=file.parent, progress=progress
        )
        self.record = _record(matched, file, str(device), str(dtype).removeprefix("torch."))
        self.state = self.record.state()
        self.scores: dict[str, dict[str, Any]] = self.state["scores"]
        self.rows: dict[str, list[dict[str, Any]]] = self.state["rows"]

    def result(self) -> dict[str, Any]:
        """As in the file, with only the rows asked for, a list."""
        budgets, seeds = self.matched.budgets, self.matched.statistics
        names = {way.name for way in self.matched.ways}
        keys = [_row_key(seed, budget) for budget in budgets for seed in seeds]
        rows = [row for key in keys for row in self.rows[key] if row["way"] in names]
        sizes = [{"names": list(b.names), "file_bytes": b.file_bytes} for b in budgets]
        return {**self.state, "rows": rows, "budgets": sizes}

    def with_whole_types(self, seed: int) -> Calibrated:
        """Measures the whole model in every type: what all ways go by."""
        checkpoint, writer = self.matched.checkpoint, self.matched.writer
        files = {quant: whole(checkpoint, writer, quant) for quant in self.matched.types}
        self._measure(list(files.values()), seed, WHOLE)
        kls = {quant: self._kl(file, seed) for quant, file in files.items()}
        return self.matched.calibrated(seed, kls)

    def fill(self, calibrated: Calibrated, budget: Budget) -> None:
        """All ways at ``budget``."""
        rows = self.rows.setdefault(_row_key(calibrated.seed, budget), [])
        rows[:] = [row for row in rows if row.get("measured") == calibrated.measured]
        done = {row["way"] for row in rows if self.run_file is None or "run" in row}
        missing = [way for way in self.matched.ways if way.name not in done]
        if not missing:
            return
        offered = {way.name: way.candidates(calibrated, budget.file_bytes) for way in missing}
        for name, files in offered.items():
            assert all(f.file_bytes <= budget.file_bytes for f in files), name
        every = [file for files in offered.values() for file in files]
        self._measure(every, calibrated.seed, budget.name)
        made = {
            name: self._row(name, files, calibrated, budget)
            for name, files in offered.items()
            if files
        }
        rows[:] = [row for row in rows if row["way"] not in made] + list(made.values())
        order = [way.name for way in self.matched.ways]
        rows.sort(key=lambda row: order.index(row["way"]) if row["way"] in order else len(order))
        self.record.write(self.state)
        shutil.rmtree(self.mended, ignore_errors=True)

    def _row(
        self, name: str, files: Sequence[Filled], calibrated: Calibrated, budget: Budget
    ) -> dict[str, Any]:
        """The best of ``files``, and what the others measured."""
        seed = calibrated.seed
        best = min(files, key=lambda file: self._kl(file, seed))
        others = [{**_facts(file), "mean_kl": self._kl(file, seed)} for file in files]
        row = {
            "way": name,
            "seed": seed,
            "budget": list(budget.names),
            "budget_bytes": budget.file_bytes,
            "budget_type": budget.type,
            "measured": calibrated.measured,
            **_facts(best),
            **self.scores[self._score_key(best, seed)],
            "candidates": others,
        }
        if self.run_file is not None:
            row["run"] = self.run_file(best, calibrated.statistics)
        return row

    def _kl(self, file: Filled, seed: int) -> float:
        return float(self.scores[self._score_key(file, seed)]["overall"]["mean_kl"])

    def _score_key(self, file: Filled, seed: int) -> str:
        """Another calibration has another importance matrix."""
        return f"{seed}-{file.key}"

    def _measure(self, files: Sequence[Filled], seed: int, what: str) -> None:
        """Scores of those ``files`` that have none yet, all in one pass over the layers."""
        statistics = self.matched.statistics[seed]
        missing = {self._score_key(file, seed): file for file in files}
        missing = {key: file for key, file in missing.items() if key not in self.scores}
        if not missing:
            return
        stage = measuring_stage(what, seed)
        begin(self.progress, stage)
        variants = [
            OtherWeights(self._stored(file, statistics), key) for key, file in missing.items()
        ]
        scores = measure(self.evaluator, variants, self.matched.measures, stage)
        self.scores["dense"] = scores[0]
        self.scores |= dict(zip(missing, scores[1:], strict=True))
        self.record.write(self.state)

    def _stored(self, file: Filled, statistics: Statistics) -> Any:
        """The weights that the file holds, decoded."""
        writer = self.matched.writer
        assert isinstance(writer, Requantiser)
        imatrix = Importance(statistics, file.plan) if file.options.imatrix else None
        source = ModelSource(self.cache, file.plan, mended=file.mended)
        return writer.requantised(source, file.options, ExportData(imatrix))


def _facts(file: Filled) -> dict[str, Any]:
    return {
        "quant": file.options.quant,
        "layout": file.options.layout,
        "file_bytes": file.file_bytes,
        "expert_bytes": file.expert_bytes,
        "kept": file.keep_ratio,
        "commonest_type": file.commonest_type,
        "type_count": file.type_count,
        "predicted_kl": file.predicted_kl,
    }


def _row_key(seed: int, budget: Budget) -> str:
    return f"{seed}-{budget.file_bytes}"


def _record(matched: Matched, file: Path, device: str, dtype: str) -> JobRecord:
    """matched.json: what is compared, scores by file, rows by budget."""
    config = matched.checkpoint.config
    identity = {
        "format": FORMAT,
        "version": VERSION,
        "key": matched.key,
        "device": device,
        "dtype": dtype,
    }
    about = {
        "model": str(matched.checkpoint.path),
        "model_type": config.family.model_type,
        "experts": config.num_experts,
        "width": config.moe_intermediate_size,
        "hidden": config.hidden_size,
        "seeds": list(matched.statistics),
        **matched.about,
    }
    empty: dict[str, Any] = {"about": about, "scores": {}, "rows": {}}
    return JobRecord(file, identity, empty, f"another -o, or delete {file}")
