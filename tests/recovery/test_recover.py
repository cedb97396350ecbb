"""The walk over the layers: what changes, what does not, and resuming."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import plans
from support.neuron_maths import activations
from support.recovering import mend_in, tensors_of, texts

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.overlay import Mended
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.forward.streaming import StreamingModel
from tenp_edge.recovery.reconstruction import Moments, repaired_down
from tenp_edge.recovery.recover import MendRules

CPU, F32 = torch.device("cpu"), torch.float32
Make = Callable[[str], Path]


def test_repair_lowers_what_every_layer_loses(checkpoint_of: Make, tmp_path: Path) -> None:
    found = mend_in(tmp_path, checkpoint_of("qwen3_moe"), MendRules())
    for facts in found.info["layers"].values():
        assert 0 < facts["loss"] < facts["loss_cut"]
    assert found.info["seconds"] > 0 and found.info["repair_ridge"] == 0.1


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_the_moments_are_those_of_the_routed_tokens(
    family: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    """One expert of the first layer, by hand from the whole model's own block."""
    path = checkpoint_of(family)
    checkpoint = Checkpoint(path)
    plan = plans.ragged_plan(checkpoint)
    found = mend_in(tmp_path, path, MendRules(), plan=plan)
    model = StreamingModel(ModelSource(checkpoint), CPU, F32)
    layer = model.layer(0)
    seen: list[tuple[torch.Tensor, ...]] = []
    layer.get_submodule("mlp.experts").register_forward_pre_hook(lambda _, args: seen.append(args))
    expert = next(e for e, w in enumerate(plan.widths[0]) if w < plan.full_width)
    weights = checkpoint.expert(0, expert)
    moments = Moments(plan.full_width)
    for domain in texts():
        for tokens, length in zip(domain.tokens, domain.lengths.tolist(), strict=True):
            output = model.run(layer, model.embed(tokens[None, :length]))[0]
            x, chosen, g = seen.pop()
            rows, slots = (chosen == expert).nonzero(as_tuple=True)
            if len(rows):
                m = activations(checkpoint.config.family, weights, x[rows].double()).float()
                moments.add(m, g[rows, slots] / output[rows].norm(dim=-1))
    expected = repaired_down(weights.down, plan.neurons(0, expert), moments.total)
    name = checkpoint.config.expert_tensor(0, expert, 2)
    torch.testing.assert_close(found.read(name), expected.float(), rtol=1e-4, atol=1e-6)
    mended = ModelSource(checkpoint, plan, found).expert(0, expert)
    assert torch.equal(mended.down, found.read(name))
    assert (mended.down_bias is None) == (weights.down_bias is None) == (family != "gpt_oss")
    if weights.down_bias is not None and mended.down_bias is not None:
        assert torch.equal(mended.down_bias, weights.down_bias)


def test_inputs_in_a_file_are_the_inputs_in_memory(
    checkpoint_of: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint_of("qwen3_moe")
    inside = mend_in(tmp_path / "memory", path, MendRules())
    monkeypatch.setattr("tenp_edge.recovery.recover.SPILL_BYTES", 0)
    spilled = mend_in(tmp_path / "file", path, MendRules())
    assert spilled.digest == inside.digest
    assert {file.name for file in (tmp_path / "file").iterdir()} == {
        "mended.json",
        *(f"layer-{index}.safetensors" for index in range(3)),
    }


def test_repair_alone_changes_down_projections_of_cut_experts(
    checkpoint_of: Make, tmp_path: Path
) -> None:
    """Routers, norms and whole experts are the cut model's, element for element."""
    checkpoint = Checkpoint(checkpoint_of("deepseek_v3"))
    plan = plans.ragged_plan(checkpoint)
    found = mend_in(tmp_path, checkpoint.path, MendRules(), plan=plan)
    cut, whole = ModelSource(checkpoint, plan), ModelSource(checkpoint, plan, mended=found)
    changed = {n for n in cut.tensors if not torch.equal(cut.read(n), whole.read(n))}
    assert changed == set(tensors_of(found))
    for name in changed:
        spec = cut.tensors[name]
        assert spec.role == "expert_down" and spec.layer is not None and spec.expert is not None
        assert plan.widths[spec.layer][spec.expert] < plan.full_width


def test_a_killed_run_ends_with_the_same_bytes(checkpoint_of: Make, tmp_path: Path) -> None:
    path, rules = checkpoint_of("qwen3_moe"), MendRules(heal="routers")
    whole = mend_in(tmp_path / "whole", path, rules)
    code = (
        "import sys, torch; torch.set_num_threads(1); from pathlib import Path\n"
        "from support.recovering import Killer, mend_in\n"
        "from tenp_edge.recovery.recover import MendRules\n"
        "rules, killer = MendRules(heal='routers'), Killer(3)\n"
        "mend_in(Path(sys.argv[1]), Path(sys.argv[2]), rules, progress=killer)"
    )
    out = tmp_path / "killed"
    command = [sys.executable, "-c", code, str(out), str(path)]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=paths)
    assert done.returncode == -9, done.stderr
    assert not (out / "mended.json").exists()
    assert len(list((out / "mending.partial").glob("layer-*.json"))) == 2
    again = mend_in(out, path, rules)
    assert again.digest == whole.digest
    assert not (out / "mending.partial").exists()
    before = (out / "mended.json").read_bytes()
    assert mend_in(out, path, rules).digest == whole.digest
    assert (out / "mended.json").read_bytes() == before  # finished work is returned at once


def test_other_rules_begin_anew(checkpoint_of: Make, tmp_path: Path) -> None:
    path = checkpoint_of("qwen3_moe")
    first = mend_in(tmp_path, path, MendRules())
    second = mend_in(tmp_path, path, MendRules(repair_ridge=1.0))
    assert first.digest != second.digest
    assert Mended(tmp_path).info["repair_ridge"] == 1.0
