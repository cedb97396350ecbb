"""`compare --matched` as a user types it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support import command

from tenp_edge.units import nats

Make = Callable[[str], Path]


def test_one_budget_of_a_tiny_model(checkpoint_of: Make, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The table has a row for every way to spend the bytes. " * 60)
    model, out = checkpoint_of("qwen3_moe"), tmp_path / "out"
    small = ["--samples", 2, "--seq-len", 32, "--eval-samples", 2, "--eval-seq-len", 32]
    data = ["--data", f"a={text}", "--eval-data", f"a={text}", "--questions", 0]
    typed = ["compare", model, "--matched", "--budget", "IQ4_XS", *small, *data, "-o", out]
    done = command.run(*typed)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "matched.json").read_text())
    (rows,) = found["rows"].values()
    ways = [row["way"] for row in rows]
    assert ways[:4] == ["whole", "own types", "pruned", "pruned+repair"] and "joint" in ways
    page = (out / "matched.md").read_text()
    assert page.count("## ") == 2  # the budget, and the bars
    assert "the whole model in IQ4_XS" in done.stdout
    again = command.run(*typed, "--json")
    told = json.loads(again.stdout)
    assert told["scores"] == found["scores"] and told["rows"] == rows
    shown = (out / "matched.html").read_text(encoding="utf-8")
    assert all(f">{nats(row['overall']['mean_kl'])}<" in shown for row in told["rows"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--matched", "--method", "tenp"],
            "error: --method is not for --matched\ntry:   leave --method or --matched out\n",
        ),
        (
            ["--matched", "--keep", "0.5"],
            "error: --keep is not for --matched\ntry:   leave --keep or --matched out\n",
        ),
        (
            ["--matched", "--seeds", "0"],
            "error: --seeds 0 is not above zero\ntry:   --seeds 1\n",
        ),
        (
            ["--budget", "Q2_K"],
            "error: --budget is for --matched\ntry:   --matched --budget Q2_K\n",
        ),
        (["--files"], "error: --files is for --matched\ntry:   --matched --files\n"),
        (
            ["--matched", "--budget", "Q9"],
            "error: --budget Q9 is not known\ntry:   --budget Q6_K|Q5_K_M|Q4_K_M|IQ4_XS|Q3_K_M|"
            "IQ3_XXS|Q2_K|IQ2_M|IQ2_XXS|IQ1_M\n",
        ),
    ],
)
def test_what_is_not_for_both(
    flags: list[str], message: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    model = checkpoint_of("qwen3_moe")
    assert command.refused("compare", model, *flags, "-o", tmp_path / "out") == message
    assert not (tmp_path / "out").exists()
