"""Ways to spend equal bytes: every file fits, is measured once, and weighs what was promised."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import calibrating

from tenp_edge.calibration.imatrix import Importance
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.overlay import Mended
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.evaluation.attribution import BOTH
from tenp_edge.evaluation.comparison.measures import TextMeasure
from tenp_edge.evaluation.matched.bars import bars
from tenp_edge.evaluation.matched.calibrated import Calibrated
from tenp_edge.evaluation.matched.filled import BUDGETS, Budget, Filled, budgets_of, whole
from tenp_edge.evaluation.matched.measuring import Matched, compare_matched
from tenp_edge.evaluation.matched.running import run_file
from tenp_edge.evaluation.matched.searched import joint
from tenp_edge.evaluation.matched.single_type import pruned, whole_types
from tenp_edge.evaluation.matched.table import lines, markdown
from tenp_edge.evaluation.matched.ways import WAYS
from tenp_edge.evaluation.rounding import sampled_errors
from tenp_edge.evaluation.rounding_job import RoundingJob
from tenp_edge.evaluation.validation import validate
from tenp_edge.exporters.base import ExportData, ExportOptions, exporter
from tenp_edge.planning.measured.probes import KEEPS, PLAIN
from tenp_edge.planning.measured.trials import Trial
from tenp_edge.progress import QuietProgress
from tenp_edge.recovery.recover import MendRules, mend

Make = Callable[[str], Path]
HOW: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
GGUF = exporter("gguf")
TYPES = ("Q8_0", "Q6_K", "IQ4_XS", "Q4_0")


@pytest.fixture(scope="module")
def matched(checkpoint_of: Make, tmp_path_factory: pytest.TempPathFactory) -> Matched:
    """Two budgets of a tiny model: eight bits' bytes, and those of four."""
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    work = tmp_path_factory.mktemp("matched")
    texts = calibrating.two_domains()
    statistics = calibrating.run(checkpoint.path, work, texts)

    job = RoundingJob(GGUF, ExportOptions("Q8_0", "per-expert", imatrix=True))
    rounding, _ = sampled_errors(checkpoint, job, ExportData(Importance(statistics)))

    def mended(plan: CompressionPlan, rules: MendRules) -> Mended:
        return mend(checkpoint, plan, texts, work / plan.digest, rules, device="cpu")

    return Matched(
        checkpoint=checkpoint,
        writer=GGUF,
        budgets=budgets_of(checkpoint, GGUF, ["Q6_K", "IQ4_XS"]),
        ways=WAYS,
        types=TYPES,
        statistics={0: statistics},
        measures={"text": [TextMeasure.of(calibrating.domain("other", 2, seed=7))]},
        mend={0: mended},
        trials={},
        rounding={0: rounding},
        about={"width_multiple": 32},
    )


class Begun(QuietProgress):
    """The stages that have begun."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def expect(self, seconds: Mapping[str, float]) -> None:
        raise AssertionError("the verb knows the whole run")

    def begin(self, stage: str) -> None:
        self.stages.append(stage)

    def reused(self, stage: str) -> None:
        raise AssertionError("nothing was there")


@pytest.fixture(scope="module")
def result(matched: Matched, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """With a stage a pass and seed, so that no seed's passes end the other's (`Course.begin`)."""
    begun, file = Begun(), tmp_path_factory.mktemp("result") / "matched.json"
    found = compare_matched(matched, file, progress=begun, **HOW)
    assert begun.stages == ["whole, seed 0", "Q6_K, seed 0", "IQ4_XS, seed 0"]
    return found


def test_budgets_are_the_bytes_of_whole_files(matched: Matched, tmp_path: Path) -> None:
    """Types that fall back to the same blocks are one budget."""
    checkpoint = matched.checkpoint
    every = budgets_of(checkpoint, GGUF)
    assert [name for budget in every for name in budget.names] == sorted(
        BUDGETS, key=lambda name: (-whole(checkpoint, GGUF, name).file_bytes, BUDGETS.index(name))
    )
    sizes = [budget.file_bytes for budget in every]
    assert sizes == sorted(set(sizes), reverse=True)
    with pytest.raises(UserError) as caught:
        budgets_of(checkpoint, GGUF, ["Q9_K"])
    assert str(caught.value.message) == "--budget Q9_K is not known"
    assert caught.value.hint == f"--budget {'|'.join(BUDGETS)}"


def test_every_row_fits_and_the_best_candidate_is_taken(
    matched: Matched, result: dict[str, Any]
) -> None:
    for row in result["rows"]:
        assert row["file_bytes"] <= row["budget_bytes"]
        kls = [candidate["mean_kl"] for candidate in row["candidates"]]
        assert row["overall"]["mean_kl"] == min(kls)
    ways = {row["way"] for row in result["rows"]}
    assert {"whole", "own types", "pruned", "pruned+repair", "joint"} <= ways
    by_way = {(row["budget"][0], row["way"]): row for row in result["rows"]}
    assert by_way["Q6_K", "whole"]["kept"] == 1
    assert 0 < by_way["IQ4_XS", "pruned"]["kept"] < 1
    assert by_way["IQ4_XS", "own types"]["kept"] == 1
    for way in ("own types", "joint"):
        row = by_way["Q6_K", way]
        assert row["quant"] == "auto"
        assert row["budget_bytes"] - row["file_bytes"] < 0.05 * row["budget_bytes"]


def test_plans_of_another_way_fit_too(matched: Matched) -> None:
    """As many neurons in other widths take other bytes: rows fall back to other types."""
    even = {**PLAIN, "ranking": "layer"}
    known = [
        Trial(way, keep, 0.1, kl, 1.0) for keep in KEEPS for way, kl in ((PLAIN, 1), (even, 0.5))
    ]
    job = replace(matched, trials={0: known})
    calibrated = job.calibrated(0, dict.fromkeys(TYPES, 0.01))
    for nbytes in range(300_000, 420_000, 15_000):
        files = [*pruned(calibrated, nbytes), *joint(calibrated, nbytes)]
        assert files
        assert all(file.file_bytes <= nbytes for file in files)


def test_types_are_only_worse_with_fewer_bytes_where_nothing_is_cut(
    result: dict[str, Any],
) -> None:
    assert result["scores"]["dense"]["overall"]["mean_kl"] == 0
    larger, smaller = (row for row in result["rows"] if row["way"] == "whole")
    assert larger["overall"]["mean_kl"] < smaller["overall"]["mean_kl"]


def test_a_row_is_what_its_file_measures(matched: Matched, tmp_path: Path) -> None:
    """The fake-quantised weights against those of the very file, written and read back."""
    statistics = matched.statistics[0]
    text = calibrating.domain("other", 2, seed=7)
    job = replace(matched, ways=[way for way in WAYS if way.name == "pruned"])
    got = compare_matched(replace(job, budgets=job.budgets[-1:]), tmp_path / "m.json", **HOW)
    (row,) = got["rows"]
    kls = dict.fromkeys(TYPES, 0.0)
    calibrated = Calibrated(matched.checkpoint, GGUF, statistics, 0, kls)
    offered = pruned(calibrated, row["budget_bytes"])
    best = next(file for file in offered if file.options.quant == row["quant"])
    file = tmp_path / "model.gguf"
    source = ModelSource(matched.checkpoint, best.plan)
    GGUF.write(source, best.options, file, ExportData(Importance(statistics, best.plan)))
    assert file.stat().st_size == row["file_bytes"]
    stored = validate(matched.checkpoint.path, file, [text], device="cpu").losses[0]
    assert stored.stage == BOTH
    assert row["overall"]["mean_kl"] == pytest.approx(stored.overall.mean_kl, rel=1e-3)


ONE, TWO = ("whole",), ("whole", "pruned")


class Killed(QuietProgress):
    """A progress that stops at the first pass of a budget."""

    def task(self, title: str, total: float, unit: str) -> Any:
        if title.startswith("IQ4_XS"):
            raise calibrating.StoppedError
        return super().task(title, total, unit)


def test_continues_where_it_was_killed(
    matched: Matched, result: dict[str, Any], tmp_path: Path
) -> None:
    """What is measured is not measured again; another way joins the rows that are there."""
    one, two = ([w for w in WAYS if w.name in names] for names in (ONE, TWO))
    file, first = tmp_path / "matched.json", replace(matched, ways=one)
    first = replace(first, budgets=matched.budgets[-1:])
    with pytest.raises(calibrating.StoppedError):
        compare_matched(replace(first, ways=two), file, **HOW, progress=Killed())
    whole_types_done = json.loads(file.read_text())["scores"]
    compare_matched(first, file, **HOW, progress=Killed())  # nothing new to measure
    assert json.loads(file.read_text())["scores"] == whole_types_done
    again = compare_matched(replace(first, ways=two), file, **HOW)
    assert [row["way"] for row in again["rows"]] == ["whole", "pruned"]
    last = [row for row in result["rows"] if row["budget"] == again["rows"][0]["budget"]]
    assert again["rows"] == [row for row in last if row["way"] in TWO]
    # Rows that were planned by other measurements are planned again; their files are known.
    other = replace(first, ways=two, rounding={})
    planned = compare_matched(other, file, **HOW, progress=Killed())
    assert planned["scores"] == again["scores"]
    (marks,), (before,) = ({row.pop("measured") for row in r["rows"]} for r in (planned, again))
    assert marks != before and planned["rows"] == again["rows"]


def test_files_are_written_timed_and_deleted(matched: Matched, tmp_path: Path) -> None:
    def run(filled: Filled, statistics: Statistics) -> dict[str, Any]:
        return run_file(matched.checkpoint, GGUF, filled, statistics, tmp_path, threads=1)

    job = replace(matched, ways=WAYS[:1], budgets=matched.budgets[-1:])
    (row,) = compare_matched(job, tmp_path / "m.json", **HOW, run_file=run)["rows"]
    assert row["run"]["file_bytes"] == row["file_bytes"]
    assert row["run"]["decode_tokens_per_second"] > 0
    assert row["run"]["peak_rss_bytes"] > row["file_bytes"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]


# -- what is shown ---------------------------------------------------------------------------------


def _row(way: str, kl: float, budget: str = "IQ4_XS", types: int = 1) -> dict[str, Any]:
    return {
        "way": way,
        "seed": 0,
        "budget": [budget],
        "budget_bytes": 2**20,
        "budget_type": budget,
        "quant": "Q4_K_S",
        "commonest_type": "Q4_K",
        "type_count": types,
        "kept": 0.75,
        "file_bytes": 2**20 - 1,
        "overall": {"mean_kl": kl, "perplexity_ratio": 1.01, "same_top": 0.97},
    }


def test_bars_are_judged_by_budget() -> None:
    rows = [_row("whole", 0.1), _row("pruned", 0.06), _row("joint", 0.04, types=3)]
    found = [(bar.rival, round(bar.ratio, 4), bar.limit, bar.held) for bar in bars({"rows": rows})]
    assert found == [("whole", 0.4, 0.5, True), ("pruned", 0.6667, 0.7, True)]
    rows = [_row("whole", 0.1, "Q2_K"), _row("pruned", 0.06, "Q2_K"), _row("joint", 0.04, "Q2_K")]
    (bar,) = bars({"rows": rows})
    assert (bar.limit, bar.held) == (0.25, False)  # one type: nothing to beat the other by
    for kind, limit in (("IQ4_NL", 0.5), ("Q5_1", 0.8), ("Q8_0", 1.0)):
        fallen_back = [{**row, "budget_type": kind} for row in rows]
        assert [bar.limit for bar in bars({"rows": fallen_back})] == [limit]


def test_the_page_has_a_section_a_budget() -> None:
    rows = [_row("whole", 0.1), _row("joint", 0.04)]
    scores = {"dense": {"overall": rows[0]["overall"]}}
    assert [line.best for line in lines({"rows": rows, "scores": scores})] == [False, True]
    assert markdown({"rows": rows, "scores": scores}) == (
        "## 1.00 MiB: the whole model in IQ4_XS\n\n"
        "| row | types and neurons | file | KL | ppl ratio | same top |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| whole | Q4_K_S, 75 % | 1024.00 KiB | 0.1000 | 1.0100 | 97.0 % |\n"
        "| joint | Q4_K_S, 75 % | 1024.00 KiB | 0.0400 * | 1.0100 | 97.0 % |\n\n"
        "## Bars\n\n"
        "| budget | row | KL beside | ratio | at most |  |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| IQ4_XS | joint | whole | 0.400 | 0.5 | held |\n"
    )


def test_budgets_with_several_names_and_ways_have_words() -> None:
    assert Budget(("Q2_K", "IQ2_M"), 5, "IQ4_NL").name == "Q2_K = IQ2_M"
    assert all(way.about for way in WAYS)
    assert {"Q8_0", "Q4_K_M", "IQ1_S"} <= set(whole_types(GGUF)) <= set(GGUF.quants)
