"""export: what a file says of the plan that it was made by."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command import run

from tenp_edge.runtime.gguf.header import read_fields
from tenp_edge.runtime.memory.planned_run import planned_in_gguf, planned_in_json

RAM = 60 * 2**20


@pytest.fixture(scope="module")
def planned(checkpoint_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What compress leaves of the tiny olmoe for a budget and Q8_0."""
    out = tmp_path_factory.mktemp("planned") / "out"
    sizes = ("--ram", "60MiB", "--quant", "Q8_0", "--samples", 1, "--seq-len", 32)
    command = ("compress", checkpoint_of("olmoe"), *sizes, "--no-validate", "--no-repair")
    done = run(*command, "-o", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize(
    ("flags", "budget"),
    [
        (("--layout", "per-expert", "--quant", "Q8_0"), RAM),
        (("--layout", "padded", "--quant", "Q8_0"), 0),
        (("--layout", "per-expert", "--quant", "F16"), 0),
        (("--format", "onnx"), 0),
    ],
)
@pytest.mark.parametrize("by_plan", [True, False])
def test_the_budget_is_of_the_planned_file_alone(
    flags: tuple[str, ...],
    budget: int,
    by_plan: bool,
    planned: Path,
    checkpoint_of: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    target = tmp_path / "made"
    pruned = (checkpoint_of("olmoe"), "--plan", planned / "plan.json")
    source = pruned if by_plan else (planned / "checkpoint",)
    done = run("export", *source, *flags, "-o", target)
    assert done.returncode == 0, done.stderr
    if "onnx" in flags:
        found = planned_in_json(json.loads((target / "tenp.json").read_text()))
    else:
        found = planned_in_gguf(read_fields(target))
    assert found is not None and found.context == 512
    assert (found.ram_budget, bool(found.device)) == (budget, budget > 0)
