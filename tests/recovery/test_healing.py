"""Healing changes what it says, and never for the worse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import plans
from support.recovering import mend_in, tensors_of, texts

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.errors import UserError
from tenp_edge.forward.hidden_states import MemoryStates
from tenp_edge.forward.streaming import StreamingModel
from tenp_edge.forward.text_batch import Domain
from tenp_edge.recovery.healing import LayerText, heal_layer, held_out
from tenp_edge.recovery.recover import MendRules, mend

CPU, F32 = torch.device("cpu"), torch.float32
Make = Callable[[str], Path]


HEALED = {"routers": {"router"}, "norms": {"router", "input_norm", "post_attention_norm"}}


@pytest.mark.parametrize("what", HEALED)
@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3"])
def test_healing_changes_what_it_says_and_never_for_worse(
    what: str, family: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    rules = MendRules(repair=False, heal=what)
    found = mend_in(tmp_path, checkpoint_of(family), rules)
    specs = ModelSource(Checkpoint(checkpoint_of(family))).tensors
    assert {specs[name].role for name in tensors_of(found)} <= HEALED[what]
    pairs = [facts["held_out"] for facts in found.info["layers"].values()]
    assert all(after <= before for before, after in pairs)
    assert any(after < before for before, after in pairs)
    assert found.info["seconds"] > 0


def test_healing_undoes_a_disturbed_router(checkpoint_of: Make) -> None:
    """Against the layer as it was, training brings a wrong router nearer to it."""
    checkpoint = Checkpoint(checkpoint_of("mixtral"))
    source = ModelSource(checkpoint)
    model = StreamingModel(source, CPU, F32)
    inputs = torch.randn(20, 24, 64, generator=torch.Generator().manual_seed(0))
    targets = model.run(model.layer(1), inputs)
    router = f"{checkpoint.config.moe_prefix(1)}gate.weight"

    class Disturbed:
        digest = ""
        wrong = source.read(router) * 0.8

        def __contains__(self, name: object) -> bool:
            return name == router

        def read(self, name: str) -> torch.Tensor:
            return self.wrong

    disturbed = ModelSource(checkpoint, mended=Disturbed())
    active = torch.ones(20, 24, dtype=torch.bool)
    text = LayerText(MemoryStates(inputs), MemoryStates(targets), active, held_out([20]))
    healed = heal_layer(model.with_source(disturbed), disturbed, 1, "routers", text)
    assert healed.after < healed.before and set(healed.tensors) == {router}
    far, near = (w - source.read(router) for w in (Disturbed.wrong, healed.tensors[router]))
    assert float(near.norm()) < float(far.norm())


def test_held_out_rows_are_a_fifth_of_every_domain() -> None:
    assert held_out([10, 3, 1]) == [4, 9, 12, 13]


def test_one_chunk_is_too_little_to_heal_on(checkpoint_of: Make, tmp_path: Path) -> None:
    checkpoint = Checkpoint(checkpoint_of("qwen3_moe"))
    short = [Domain(d.name, d.tokens[:1], d.lengths[:1]) for d in texts()]
    plan = plans.ragged_plan(checkpoint)
    with pytest.raises(UserError) as caught:
        mend(checkpoint, plan, short, tmp_path, MendRules(heal="routers"))
    assert caught.value.message == "heal holds text out, and no domain has 2 chunks"
    assert caught.value.hint == "--samples 8 and more text"
