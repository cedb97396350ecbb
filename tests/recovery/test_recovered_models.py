"""The mended model everywhere: checkpoint, file, runtime, comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import plans, tiny
from support.recovering import mend_in, tensors_of, texts

from tenp_edge.checkpoint.compression_plan import CompressionPlan
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.overlay import Mended
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.disk import read_json
from tenp_edge.errors import UserError
from tenp_edge.evaluation.comparison.compared_methods import Case, Cut, mended
from tenp_edge.evaluation.variants import Planned
from tenp_edge.exporters.base import ExportOptions, exporter
from tenp_edge.forward.sweep import streaming_logits
from tenp_edge.forward.transformers_model import load_pruned
from tenp_edge.recovery.recover import MendRules
from tenp_edge.runtime.opening import RunOptions, open_model

CPU, F32 = torch.device("cpu"), torch.float32
Make = Callable[[str], Path]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_checkpoint_file_and_runtime_are_the_mended_model(
    family: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    """Written as a checkpoint, exported, read back and run: the same logits everywhere."""
    checkpoint = Checkpoint(checkpoint_of(family))
    plan = plans.ragged_plan(checkpoint)
    rules = MendRules(heal="norms")
    found = mend_in(tmp_path / "mended", checkpoint.path, rules, plan=plan)
    source = ModelSource(checkpoint, plan, mended=found)
    write_checkpoint(source, tmp_path / "checkpoint")
    tokens = texts()[0].tokens[:1, :32]
    expected = torch.cat(list(streaming_logits(source, tokens, device=CPU, dtype=F32)))
    plain = ModelSource(checkpoint, plan)
    cut = torch.cat(list(streaming_logits(plain, tokens, device=CPU, dtype=F32)))
    assert float((expected - cut).abs().max()) > 1e-3

    written = ModelSource(Checkpoint(tmp_path / "checkpoint"))
    assert written.digest == source.digest != plan.digest
    assert all(torch.equal(written.read(name), source.read(name)) for name in source.tensors)
    logits = load_pruned(tmp_path / "checkpoint")(tokens).logits[0]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)

    file, gguf = tmp_path / "model.gguf", exporter("gguf")
    gguf.write(source, ExportOptions("F32"), file)
    stored = gguf.read_back(file, checkpoint.config)
    assert stored.plan_digest == source.digest
    # Norms around zero are stored as 1 + w, in float32.
    rounded = 2**-22 if checkpoint.config.family.zero_centred_norms else 0.0
    for name in tensors_of(found):
        apart = (stored.read(name) - source.read(name).float()).abs().max()
        assert float(apart) <= rounded, name
    options = RunOptions(context=32, kv_type="F32", flash_attention=False)
    with open_model(file, options) as model:
        ran = torch.from_numpy(model.logits(tokens[0].tolist(), 0))
    # A table of float16 numbers is up to 5e-4 of a neuron from GELU itself.
    bar = 5e-3 if tiny.is_looked_up(family) else 1e-4
    assert float((ran - expected).abs().max()) < bar * max(1.0, float(expected.std()))


def test_a_mended_checkpoint_says_so_and_is_not_the_cut_one(
    checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    plan = plans.ragged_plan(checkpoint)
    found = mend_in(tmp_path / "mended", checkpoint.path, MendRules(heal="routers"), plan=plan)
    source = ModelSource(checkpoint, plan, mended=found)
    write_checkpoint(source, tmp_path / "out")
    section = read_json(tmp_path / "out" / "config.json")["tenp"]
    assert section["mended"] == {
        "repair": True,
        "repair_ridge": 0.1,
        "heal": "routers",
        "plan_digest": plan.digest,
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert "refitted by ridge least squares (0.1)" in card and "bit for" not in card
    with pytest.raises(UserError) as caught:
        write_checkpoint(ModelSource(checkpoint, plan), tmp_path / "out")
    assert caught.value.message == f"{tmp_path / 'out'} already holds another model"


def test_a_mended_row_is_its_base_with_other_weights(checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    plan = plans.ragged_plan(checkpoint)
    asked: list[MendRules] = []

    def build(given: CompressionPlan, rules: MendRules) -> Mended:
        assert given is plan
        asked.append(rules)
        return mend_in(tmp_path / "m", checkpoint.path, rules, plan=given)

    base = Cut(Planned(plan), kept=0.5, stored=0.5, active_ratio=0.6)
    case = replace_case(build)
    cut = mended(lambda _case, _neurons: base, MendRules())(case, 0)
    assert asked == [MendRules()]
    assert replace(cut, candidate=base.candidate) == base
    source = cut.candidate.source(checkpoint)
    name = next(iter(tensors_of(Mended(tmp_path / "m"))))
    assert not torch.equal(source.read(name), base.candidate.source(checkpoint).read(name))


def replace_case(build: Any) -> Case:
    case = Case.__new__(Case)
    case.mend = build
    return case
