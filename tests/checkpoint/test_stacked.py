"""Experts that transformers reads stacked only are written so, and one by one where it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from support.plans import cycled, plan_for, removal_plan, whole_plan
from transformers import AutoModelForCausalLM

from tenp_edge import load_pruned
from tenp_edge.checkpoint.as_stored import AsStored
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.stacked import WrittenStacks
from tenp_edge.checkpoint.writer import checkpoint_files, write_checkpoint

Make = Callable[[str], Path]
TOKENS = torch.arange(3, 43)[None]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_whole_experts_load_in_plain_transformers(
    family: str, checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    source = ModelSource(checkpoint, removal_plan(checkpoint, checkpoint.config.num_experts - 2))
    write_checkpoint(source, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="eager")
    with torch.no_grad():
        wanted, found = plain(TOKENS).logits, load_pruned(tmp_path)(TOKENS).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("widths", "stacked"), [((64,), True), ((32, 64), False)])
@pytest.mark.parametrize("family", ["gemma4_text", "gpt_oss"])
def test_equal_widths_are_stacked(
    family: str, widths: tuple[int, ...], stacked: bool, checkpoint_of: Make, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    source = ModelSource(checkpoint, plan_for(checkpoint, cycled(checkpoint, widths)))
    write_checkpoint(source, tmp_path)
    names = load_file(tmp_path / "model.safetensors").keys()
    experts = f"{checkpoint.config.moe_prefix(0)}experts."
    assert (f"{experts}gate_up_proj" in names) == stacked
    assert (f"{experts}3.up_proj.weight" in names) != stacked
    assert checkpoint_files(source) == {
        "model.safetensors": (tmp_path / "model.safetensors").stat().st_size
    }
    written = ModelSource(Checkpoint(tmp_path))
    assert written.config.expert_widths == source.config.expert_widths
    assert all(torch.equal(written.read(name), source.read(name)) for name in source.tensors)


def test_stacked_as_gpt_oss_is_published(checkpoint_of: Make, tmp_path: Path) -> None:
    """Transposed, gate and up in turns, biases beside: each tensor, in whatever order it is asked
    for (a run that continues may begin with the biases)."""
    checkpoint = Checkpoint(checkpoint_of("gpt_oss"))
    published = load_file(checkpoint.path / "model.safetensors")
    source = ModelSource(checkpoint, whole_plan(checkpoint))
    write_checkpoint(source, tmp_path)
    written = load_file(tmp_path / "model.safetensors")
    assert written.keys() == published.keys()
    assert all(torch.equal(written[name], published[name]) for name in published)
    for name in ("down_proj_bias", "gate_up_proj_bias", "gate_up_proj"):
        experts = torch.cat(
            [
                *WrittenStacks(source, AsStored(source, "decoded")).blocks(
                    f"model.layers.1.mlp.experts.{name}"
                )
            ]
        )
        assert torch.equal(experts, published[f"model.layers.1.mlp.experts.{name}"])
