"""Repair and healing from the command line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import refused, run

Make = Callable[[str], Path]


QUICK = ("--samples", "6", "--seq-len", "64", "--set", "eval-samples=2", "--set", "eval-seq-len=64")


@pytest.mark.parametrize("stored", ["checkpoint", "mended"])
def test_compress_repairs_heals_and_validates(
    stored: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    """The stage "pruning" of the loss is the mended model's, found beside the file: as a
    checkpoint, or as plan.json with mended/."""
    model, out = checkpoint_of("qwen3_moe"), tmp_path / "out"
    more = ("--skip-checkpoint",) if stored == "mended" else ()
    call = (
        "compress",
        model,
        "--keep",
        "0.5",
        "--quant",
        "F32",
        "--repair",
        "--set",
        "heal=routers",
    )
    done = run(*call, *QUICK, *more, "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["mended"]["repair"] is True and result["mended"]["heal"] == "routers"
    assert "mean loss of a layer" in done.stderr
    losses = result["validation"]["losses"]
    assert [loss["stage"] for loss in losses] == ["pruning", "quantisation", "runtime"]
    # F32: the file holds the mended model itself, so nothing is added after the pruning.
    assert abs(losses[1]["added_kl"]) < 1e-9
    assert losses[0]["overall"]["mean_kl"] > 0
    before = hashlib.sha256((out / "model.gguf").read_bytes()).hexdigest()
    again = run(*call, *QUICK, *more, "-o", out)
    assert again.returncode == 0, again.stderr
    assert hashlib.sha256((out / "model.gguf").read_bytes()).hexdigest() == before
    assert refused("compress", model, "--keep", "0.5", *QUICK, "-o", out) == (
        f"error: {out} holds a finished run with other settings\n"
        f"try:   another -o with --calibration {out / 'calibration'} (it is not made again), "
        "or --force to overwrite it\n"
    )


def test_nothing_cut_is_nothing_to_mend(checkpoint_of: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call = ("compress", checkpoint_of("olmoe"), *QUICK, "--no-validate", "--repair")
    done = run(*call, "--keep", "1", "-o", out)
    assert done.returncode == 0, done.stderr
    assert "nothing was cut: there is nothing to repair or to heal" in done.stderr
    assert not (out / "mended").exists()
    done = run(*call, "--keep", "0.5", "--method", "drop", "-o", tmp_path / "drop")
    assert done.returncode == 0, done.stderr
    assert "every expert is whole or removed: there is nothing to repair" in done.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--no-repair", "--set", "repair-ridge=0.3"),
            "error: repair-ridge says how to repair, and nothing is repaired\ntry:   --repair\n",
        ),
        (
            ("--repair", "--set", "repair-ridge=0"),
            "error: --set repair-ridge=0 is not above 0\ntry:   --set repair-ridge=0.1\n",
        ),
        (
            ("--set", "heal=everything"),
            "error: --set heal=everything is not known\ntry:   --set heal=routers|norms\n",
        ),
    ],
)
def test_refusals(
    flags: tuple[str, ...], message: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    call = ("compress", checkpoint_of("olmoe"), "--keep", "0.6", *flags, "-o", out)
    assert refused(*call) == message
    assert not out.exists()
