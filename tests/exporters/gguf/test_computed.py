"""Tensors that no checkpoint stores are what transformers computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.exporters.gguf.computed import computed_tensors
from tenp_edge.forward.streaming import skeleton


def test_divisors_of_a_head_that_turns_in_part(checkpoint_of: Callable[[str], Path]) -> None:
    """Pairs that stand still are divided by so much that no position turns them."""
    config = Checkpoint(checkpoint_of("gemma4_text")).config
    (factors,) = computed_tensors(config).values()
    theirs = skeleton(config).model.rotary_emb.full_attention_inv_freq
    size = config.layer_attention(2).head_dim
    plain = 1.0 / 1e6 ** (torch.arange(0, size, 2) / size)
    torch.testing.assert_close(plain / factors, theirs, rtol=1e-6, atol=1e-20)
    assert factors.tolist() == [1.0] * 4 + [factors[-1]] * 12


def test_others_have_none(checkpoint_of: Callable[[str], Path]) -> None:
    assert not computed_tensors(Checkpoint(checkpoint_of("qwen3_moe")).config)
