"""The page of a comparison: the numbers of its rows, and the same manners as a run's."""

from __future__ import annotations

from html import unescape
from pathlib import Path
from typing import Any

import pytest
from support.browser import PHONE, Chromium, faint, opened, sideways

from tenp_edge.pages.compare import write_comparison, write_matched

_ABOUT = {
    "calibration": {"data": [], "samples": 4},
    "evaluation": {"data": ["code=a.jsonl"], "domains": ["code"]},
}


def _scores(kl: float) -> dict[str, Any]:
    return {
        "overall": {"mean_kl": kl, "perplexity_ratio": 1 + kl, "same_top": 1 - kl},
        "text": {"code": {"mean_kl": 2 * kl}, "<prose>": {"mean_kl": kl / 2}},
    }


def by_share() -> dict[str, Any]:
    """Two methods at two ratios, from two calibrations."""
    rows = [
        {
            "method": method,
            "keep": keep,
            "kept": keep,
            "seed": seed,
            "expert_bytes": 2**20,
            "active_ratio": 0.7,
            "predicted_loss": kl,
            **_scores(kl * (1 + seed / 10)),
        }
        for keep in (0.5, 0.75)
        for method, kl in (("adaptive", 0.02 * keep), ("<drop>", 0.3 * keep))
        for seed in (0, 1)
    ]
    return {"dense": _scores(0.0), "rows": rows, **_ABOUT}


def by_bytes() -> dict[str, Any]:
    rows = [
        {
            "budget": [name],
            "budget_bytes": size,
            "budget_type": "IQ4_XS",
            "way": way,
            "seed": 0,
            "kept": 0.8,
            "quant": "auto",
            "commonest_type": "IQ4_XS",
            "type_count": 3,
            "file_bytes": size - 5,
            **_scores(kl),
        }
        for name, size in (("Q4_K_M", 2**24), ("IQ4_XS", 2**23))
        for way, kl in (("whole", 0.01), ("joint", 0.004))
    ]
    return {"scores": {"dense": _scores(0.0)}, "rows": rows, "about": _ABOUT}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("compared")
    return [write_comparison(out, "a-model", by_share()), write_matched(out, "m", by_bytes())]


def test_the_numbers_are_those_of_the_rows(pages: list[Path]) -> None:
    shares, sizes = (unescape(page.read_text(encoding="utf-8")) for page in pages)
    assert [page.name for page in pages] == ["compare.html", "matched.html"]
    assert "2 ways to cut a-model" in shares and "The least loss: adaptive at 50 %" in shares
    for shown in (
        "0.0105 ±0.000500",
        "0.1575 ±0.0075",
        "1.00 MiB",
        "70.0 %",
        "text in the package",
    ):
        assert shown in shares, shown
    assert ">own width per expert, by predicted loss<" in shares
    assert ">widths and types in one search<" in sizes
    assert shares.index("Keep 0.5") < shares.index("Keep 0.75")
    for shown in ("joint in 16.00 MiB", "0.00400", "3 types, mostly IQ4_XS, 80 %", "held"):
        assert shown in sizes, shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(chromium: Chromium, pages: list[Path], scheme: str) -> None:
    for file in pages:
        with opened(chromium, file, color_scheme=scheme, viewport=PHONE, offline=True) as (
            page,
            seen,
        ):
            assert sideways(page) == [] and faint(page) == []
            assert (seen.errors, seen.failed, seen.requests) == ([], [], [])
            assert page.get_by_role("table").count() >= 3
            assert page.locator("script").count() == 0
