"""A dense model split into experts: all of them with even gates are the dense model again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from distilling import Distillation, Recipe, compute_all_experts
from split_smollm import assemble, grouped, split_layers
from transformers import LlamaConfig, LlamaForCausalLM

RECIPE = replace(Recipe(), experts=4, top_k=4, sequences_per_step=2)
ROWS = torch.randint(0, 96, (8, 16), generator=torch.Generator().manual_seed(0))


def dense_model() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def test_groups_are_equal_and_of_neurons_that_go_together() -> None:
    """Four groups of neurons, each large on tokens of its own."""
    kinds = torch.arange(32) % 4
    tokens = torch.arange(64) % 4
    noise = torch.rand(64, 32, generator=torch.Generator().manual_seed(1))
    sizes = (tokens[:, None] == kinds[None]).float() + 0.1 * noise
    group = grouped(sizes, 4, torch.Generator().manual_seed(0))
    assert group.bincount().tolist() == [8] * 4
    assert all(len(group[kinds == kind].unique()) == 1 for kind in range(4))


def test_all_experts_with_even_gates_are_the_dense_model() -> None:
    dense = dense_model()
    split = assemble(dense, split_layers(dense, ROWS, RECIPE), RECIPE).eval()
    compute_all_experts(split)
    for layer in split.model.layers:
        layer.mlp.gate.weight.data.zero_()
    with torch.no_grad():
        expected, made = (model(input_ids=ROWS).logits for model in (dense, split))
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


def test_distilling_continues_and_comes_closer(tmp_path: Path) -> None:
    dense, recipe = dense_model(), replace(RECIPE, top_k=1, learning_rate=1e-3)
    split = assemble(dense, split_layers(dense, ROWS, recipe), recipe)
    compute_all_experts(split)
    first, *_ = Distillation(tmp_path, dense, split, ROWS, recipe).run(6, 3)
    again = Distillation(tmp_path, dense, split, ROWS, recipe)
    assert again.step == 6
    last = list(again.run(60, 30))[-1]
    assert last["step"] == 60
    assert last["kl"] < first["kl"]


@pytest.fixture(autouse=True)
def _signals() -> Any:
    """Training catches SIGINT; the tests after this one get it back."""
    import signal

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
