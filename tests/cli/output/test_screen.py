"""How much a verb says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from support.command import refused, run

PLAN = ("--ram", "54MiB", "--context", 1024)
PAPER_WORDS = ("rho", "R_active", "trapezoid", "alpha", "beta", "nats", "delta p", "RMS")


def test_the_default_is_one_screen_of_plain_words() -> None:
    done = run("plan", "demo", *PLAN)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) < 20
    assert re.fullmatch(r"memory    fits into 54.00 MiB: 5\d.\d\d MiB .*, context 1024", lines[0])
    assert not [word for word in PAPER_WORDS if word in done.stdout]
    assert lines[-2] == "next      weigh the neurons:  tenp-edge calibrate demo -o WORK"
    last = "          make it:            tenp-edge compress demo --ram 54MiB --context 1024 -o OUT"
    assert lines[-1] == last


def test_verbose_says_everything() -> None:
    done = run("plan", "demo", *PLAN, "--verbose")
    assert all(word in done.stdout for word in ("stay whole", "Memory", "Widths", "Files (exact)"))
    assert not [word for word in PAPER_WORDS if word in done.stdout]
    assert done.stdout.endswith(run("plan", "demo", *PLAN).stdout)
    assert not any(line.endswith(" ") for line in done.stdout.splitlines())


def test_quiet_says_one_line(checkpoint_of: Callable[[str], Path], tmp_path: Path) -> None:
    done = run("export", checkpoint_of("qwen3_moe"), "-o", tmp_path / "m.gguf", "--quiet")
    assert done.stderr == ""
    assert done.stdout.startswith(f"{tmp_path / 'm.gguf'}: ") and done.stdout.count("\n") == 1


def test_quiet_and_verbose() -> None:
    assert refused("inspect", "demo", "--quiet", "--verbose") == (
        "error: --quiet and --verbose are opposites\ntry:   one of them\n"
    )


def test_a_share_that_is_rounded_and_bits_that_are_left() -> None:
    rounded = run("plan", "demo", "--layout", "merged", "--keep", "0.6").stdout
    assert "asked for 60.0 %: widths are multiples of 32 neurons" in rounded
    assert "note      BF16 would fit too" in run("plan", "demo", "--ram", "8GiB").stdout
    assert "BF16 would fit" not in run("plan", "demo", *PLAN).stdout
