"""The lines of the table at equal bytes: by kind of text, the least bold, missed bars marked."""

from __future__ import annotations

from typing import Any

from bench_matched import COLUMNS, rows, runs
from records import Table


def _row(way: str, code: float, prose: float, **more: Any) -> dict[str, Any]:
    return {
        "way": way,
        "seed": 0,
        "budget": ["IQ3_XXS"],
        "budget_bytes": 2**20,
        "budget_type": "IQ3_XXS",
        "quant": "IQ4_XS",
        "commonest_type": "IQ4_XS",
        "type_count": 1,
        "kept": 1,
        "file_bytes": 2**20,
        "expert_bytes": 2**19,
        "text": {"code": {"mean_kl": code}, "prose": {"mean_kl": prose}},
        **more,
    }


RESULT = {
    "budgets": [{"names": ["IQ3_XXS"], "file_bytes": 2**20}],
    "rows": [
        _row("whole", 0.04, 0.2),
        _row("pruned", 0.02, 0.3, kept=0.7),
        _row("joint", 0.012, 0.1, kept=0.8, quant="auto", type_count=3),
    ],
}


def test_a_line_says_who_is_best_and_what_is_missed() -> None:
    (line,) = rows(RESULT, ["code"], others=False, bound=lambda nbytes: nbytes / 2**29)
    assert line["bold"] == ["joint"]
    assert line["whole_mark"] == " **(> 0.25)**"
    assert line["pruned_mark"] == ""
    assert Table(COLUMNS).line({"model": "m", "calibrated_on": "code", **line}) == (
        "| m | code | IQ3_XXS, 1.00 MiB | 0.04 (IQ4_XS) |  | 0.02 (IQ4_XS 70 %) |  |  | "
        "**0.012** (IQ4_XS 80 %) |  | 0.30 **(> 0.25)** | 0.60 | 0.00098 |"
    )


def test_other_text_is_the_mean_of_the_other_kinds() -> None:
    (line,) = rows(RESULT, ["code"], others=True, bound=None)
    assert (line["whole"], line["pruned"], line["joint"]) == (0.2, 0.3, 0.1)
    assert line["bold"] == ["joint"]


def test_only_files_that_were_run_are_listed() -> None:
    assert list(runs(RESULT)) == []
