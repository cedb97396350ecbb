"""What a refusal says to try, tried: each way is followed and leads to a plan that fits."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.errors import UserError
from tenp_edge.planning.budget.alternatives import _more_than
from tenp_edge.planning.options.devices import DeviceProfile, this_machine
from tenp_edge.planning.options.spec import PlanOptions
from tenp_edge.planning.planner import make_plan
from tenp_edge.runtime.memory.footprint import KV_TYPES
from tenp_edge.units import parse_size

MIB = 2**20
_WAY = re.compile(r"--(?:set )?(context|kv-type|ubatch|quant|ram)[ =](\S+)(?: \(([\d.]+ \w+)\))?")


def refused(
    model: Checkpoint, device: DeviceProfile, request: PlanOptions, confirm: bool = True
) -> tuple[str, str]:
    with pytest.raises(UserError) as caught:
        make_plan(model, device, request, confirm=confirm)
    return caught.value.message, caught.value.hint or ""


def changed(request: PlanOptions, flag: str, value: str) -> PlanOptions:
    """``request`` with one flag as a user would type it."""
    if flag == "ram":
        return replace(request, budget_bytes=parse_size(value))
    known = {"context": int, "ubatch": int, "kv-type": str, "quant": str}
    return replace(request, **{flag.replace("-", "_"): known[flag](value)})


def follow(
    model: Checkpoint, device: DeviceProfile, request: PlanOptions
) -> dict[str, CompressionPlan]:
    """Every way that the refusal of ``request`` prints, and the plan that it gives."""
    _message, hint = refused(model, device, request)
    ways = _WAY.findall(hint)
    written = [f"--set {f}={v}" if f == "ubatch" else f"--{f} {v}" for f, v, _ in ways]
    sizes = [f" ({size})" if size else "" for _, _, size in ways]
    assert " or ".join(map("".join, zip(written, sizes, strict=True))) == hint
    found = {}
    for flag, value, size in ways:
        asked = changed(request, flag, value)
        plan = make_plan(model, device, asked, confirm=True)
        assert plan.memory["source"] == "runtime"
        assert plan.memory["headroom_bytes"] >= 0, f"--{flag} {value}"
        assert not size or parse_size(size) <= plan.memory["budget_bytes"]
        found[flag] = plan
    return found


def smallest(
    model: Checkpoint, device: DeviceProfile, confirm: bool = True, **choices: object
) -> int:
    """Bytes of the smallest plan, as a refusal names them."""
    request = PlanOptions(budget_bytes=MIB, method="adaptive", **choices)  # type: ignore[arg-type]
    message, _ = refused(model, device, request, confirm)
    found = re.search(r"needs (\S+ \S+) with", message)
    assert found is not None
    return parse_size(found[1])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A cache of 3 kB per token, which a shorter context saves."""
    directory = tmp_path_factory.mktemp("model")
    changes = {"num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 16384}
    return Checkpoint(tiny.make(directory, "qwen3_moe", **changes))


def test_the_ways_out_of_a_tiny_model_lead_out(wide: Checkpoint) -> None:
    device = replace(this_machine(), context=16384, threads=1)
    least = smallest(wide, device)
    cache = 3 * 16384 * 2 * KV_TYPES["F16"].row_bytes(4 * 64)
    found = follow(wide, device, PlanOptions(budget_bytes=least - cache // 4, method="adaptive"))
    assert {"context", "kv-type", "ram"} <= set(found)
    assert found["context"].memory["context"] == 8192
    assert found["kv-type"].memory["kv_bytes"] < 0.6 * cache


def followed(
    model: Checkpoint, device: DeviceProfile, **choices: Any
) -> dict[str, CompressionPlan]:
    """`follow` at a few numbers of bytes below the smallest plan. The process, in whole MiB, is
    measured for each: it may be one smaller, so that nothing is refused, or one larger, so that a
    way which saves 2.6 MiB is none."""
    least, found = smallest(model, device, **choices), dict[str, CompressionPlan]()
    for short in (MIB, MIB // 2, MIB // 4):
        request = PlanOptions(budget_bytes=least - short, method="adaptive", **choices)
        with suppress(pytest.fail.Exception):  # it did not raise
            found |= follow(model, device, request)
    return found


def test_the_ways_out_of_the_bundled_model_lead_out() -> None:
    model = Checkpoint(Path(str(files("tenp_edge") / "demo_model")))
    device = replace(this_machine(), threads=1)
    assert {"ubatch", "ram"} <= set(followed(model, device))
    typed = followed(model, device, quant="F16")
    assert typed["quant"].record.quant not in ("F32", "F16", "BF16")


def test_nobody_short_of_memory_is_offered_a_larger_type(wide: Checkpoint) -> None:
    device = replace(this_machine(), context=512, threads=1)
    # The runtime is asked of one: a process for each of the ways, of every type that is tried.
    for quant, confirm in (("Q2_K", True), ("Q8_0", False)):
        request = PlanOptions(quant=quant, method="adaptive")
        least = smallest(wide, device, confirm, quant=quant)
        _, hint = refused(wide, device, replace(request, budget_bytes=least - MIB // 8), confirm)
        offered = re.findall(r"--quant (\w+)", hint)
        assert not {"F32", "F16", "BF16", "Q8_0"} & set(offered), hint


def test_a_context_that_the_model_does_not_know(wide: Checkpoint) -> None:
    message, hint = refused(
        wide, this_machine(), PlanOptions(keep=1.0, context=16385, method="tenp")
    )
    assert message == "--context 16385 is more than the 16384 tokens that the model knows"
    assert hint == "--context 16384"
    plan = make_plan(
        wide, replace(this_machine(), context=32768), PlanOptions(keep=1.0, method="tenp")
    )
    assert plan.memory["context"] == 16384
    assert plan.record.notes[0] == (
        "planned for a context of 16384: the model knows no more (this machine would take 32768)"
    )


def test_a_pinned_share_that_does_not_fit(wide: Checkpoint) -> None:
    device = replace(this_machine(), context=512, threads=1)
    request = PlanOptions(keep=1.0, quant="Q8_0", method="tenp")
    needed = make_plan(wide, device, request).memory["total_bytes"]
    message, hint = refused(wide, device, replace(request, budget_bytes=needed - 1), confirm=False)
    assert message.startswith("--keep 1 needs ") and "; --ram allows " in message
    assert hint.startswith("leave --keep out, or --ram ")
    free = replace(request, keep=None, budget_bytes=needed - 1)
    assert make_plan(wide, device, free).keep_ratio < 1
    _, hint = refused(wide, device, replace(request, budget_bytes=MIB), confirm=False)
    assert re.fullmatch(r"--ram [\d.]+MiB", hint), "leaving --keep out would not help"


def test_what_is_too_little_by_a_hair_does_not_read_like_enough() -> None:
    assert _more_than(54 * MIB, 54 * MIB + 1000) == "54.01 MiB"
    assert _more_than(2 * 2**30, 2 * 2**30 + MIB) == "2.01 GiB"
    assert _more_than(50 * MIB, 54 * MIB) == "54.00 MiB"
