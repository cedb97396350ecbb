"""load_pruned: a transformers model that generates, with the checkpoint's names and tensors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import plans, tiny
from transformers import AutoModelForCausalLM

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.writer import write_checkpoint
from tenp_edge.forward.sweep import streaming_logits
from tenp_edge.forward.transformers_model import load_pruned

PROMPT = torch.tensor([[5, 6, 7, 8]])


def assert_as_stored(model: torch.nn.Module, path: Path) -> None:
    checkpoint, state = Checkpoint(path), model.state_dict()
    assert set(state) == set(checkpoint.tensors)
    for name, tensor in state.items():
        assert torch.equal(tensor, checkpoint.read(name)), name


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_pruned_checkpoint(
    family: str, checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = Checkpoint(checkpoint_of(family))
    source = ModelSource(checkpoint, plans.ragged_plan(checkpoint))
    write_checkpoint(source, tmp_path / "checkpoint")
    model = load_pruned(tmp_path)
    assert_as_stored(model, tmp_path / "checkpoint")
    cpu = torch.device("cpu")
    streamed = next(streaming_logits(source, PROMPT, device=cpu, dtype=torch.float32))
    assert torch.allclose(model(PROMPT).logits[0], streamed, atol=1e-5)
    assert model.generate(PROMPT, max_new_tokens=4, do_sample=False).shape == (1, 8)


@pytest.mark.parametrize("family", ("mixtral", "qwen3_moe"))
def test_dense_checkpoint_generates_like_transformers(
    family: str, checkpoint_of: Callable[[str], Path]
) -> None:
    """Mixtral's blocks have another name in memory; Qwen3's embeddings are tied."""
    path = checkpoint_of(family)
    model, reference = load_pruned(path), AutoModelForCausalLM.from_pretrained(path)
    assert_as_stored(model, path)
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = reference.generate(PROMPT, **options)
    assert torch.equal(model.generate(PROMPT, **options), expected)


def test_state_dict_can_be_loaded_back(checkpoint_of: Callable[[str], Path]) -> None:
    model = load_pruned(checkpoint_of("qwen3_moe"))
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.load_state_dict(state)
    assert torch.equal(model.lm_head.weight, state["model.embed_tokens.weight"])
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_another_dtype(checkpoint_of: Callable[[str], Path]) -> None:
    model = load_pruned(checkpoint_of("deepseek_v3"), dtype=torch.bfloat16)
    kinds = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    router_bias = {name for name in kinds if name.endswith("e_score_correction_bias")}
    assert {kinds[name] for name in router_bias} == {torch.float32}
    assert {kinds[name] for name in set(kinds) - router_bias} == {torch.bfloat16}
    assert model.dtype == torch.bfloat16
    assert model(PROMPT).logits.isfinite().all()


def test_a_prompt_with_padding_on_the_left(checkpoint_of: Callable[[str], Path]) -> None:
    """generate() on a batch: the mask reaches attention as in any transformers model."""
    model = load_pruned(checkpoint_of("qwen2_moe"))
    alone = model.generate(PROMPT, max_new_tokens=4, do_sample=False, pad_token_id=0)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.int64), PROMPT], dim=1)
    mask = (torch.arange(7) >= 3)[None].long()
    together = model.generate(
        padded, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0
    )
    assert torch.equal(together[:, 3:], alone)
