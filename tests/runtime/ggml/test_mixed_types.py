"""Experts of one layer in types of their own: each computes what unmodified llama.cpp does."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_gguf import TypeOf, write_random
from support.edits import refusal
from support.gguf_cases import Logits

from tenp_edge.exporters.gguf.layout import Entry
from tenp_edge.exporters.gguf.types import TYPES
from tenp_edge.models import FAMILIES, ModelConfig, read_config
from tenp_edge.runtime.ggml.model import PerExpertModel
from tenp_edge.runtime.ggml.ragged import MAX_TOKENS
from tenp_edge.runtime.gguf.header import GGML_TYPES
from tenp_edge.runtime.gguf.padded_twin import GgufFile, write_padded_twin
from tenp_edge.runtime.llamacpp.model import LlamaCppModel

SHAPE: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "num_hidden_layers": 1,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
    "max_position_embeddings": 512,
    "rope_theta": 1e4,
    "vocab_size": 64,
    "tie_word_embeddings": False,
}
KINDS = tuple(TYPES)
CHOICES = {"context": 320, "threads": 1, "kv_type": "F32", "flash_attention": False}
GATE_UP = ("expert_gate", "expert_up")


def config_of(experts: int, width: int = 256, **changes: Any) -> ModelConfig:
    config = read_config(SHAPE | {"num_experts": experts} | changes, FAMILIES)
    return replace(config, expert_widths=dict.fromkeys(config.moe_layers, (width,) * experts))


def pairs(step: int) -> list[tuple[str, str]]:
    """Every type once for gate and up and once for down, ``step`` apart."""
    return [(kind, KINDS[(n + step) % len(KINDS)]) for n, kind in enumerate(KINDS)]


def types_of(chosen: list[tuple[str, str]]) -> TypeOf:
    """Expert E, and whatever stacks experts, takes the pair E; all else is Q8_0."""

    def type_of(entry: Entry) -> str:
        if not entry.role.startswith("expert_"):
            return "Q8_0"
        return chosen[entry.expert or 0][0 if entry.role in GATE_UP else 1]

    return type_of


@cache
def embeddings() -> torch.Tensor:
    return torch.randn(SHAPE["vocab_size"], 256, generator=torch.Generator().manual_seed(1))


def own(experts: int) -> dict[str, torch.Tensor]:
    """A router that sends token E to expert E."""
    return {"blk.0.ffn_gate_inp.weight": embeddings()[:experts].clone()}


def write(file: Path, layout: str, chosen: list[tuple[str, str]], width: int, **more: Any) -> Path:
    config = config_of(len(chosen), width, **more)
    stored = own(len(chosen)) | {"token_embd.weight": embeddings()}

    def type_of(entry: Entry) -> str:
        return "F32" if entry.role == "embed" else types_of(chosen)(entry)

    write_random(config, layout, type_of, file, stored)
    return file


@pytest.mark.parametrize(("step", "width"), [(1, 256), (5, 256), (7, 96)])
@pytest.mark.parametrize("use_extension", [True, False])
def test_each_expert_is_llamacpps(
    step: int, width: int, use_extension: bool, tmp_path: Path, extension: bool
) -> None:
    """A token that goes to one expert gives the logits of a file of that expert alone, in its two
    types, bit for bit; every type meets others. Rows of 96 take the fallbacks."""
    assert extension, "no C compiler: the extension cannot be tested here"
    chosen = pairs(step)
    file = write(tmp_path / "mixed.gguf", "per-expert", chosen, width)
    with PerExpertModel(file, use_extension=use_extension, **CHOICES) as mixed:
        assert bool(mixed._model.ragged) == use_extension
        for expert, pair in enumerate(chosen):
            alone = write(tmp_path / "alone.gguf", "merged", [pair], width)
            with LlamaCppModel(alone, **CHOICES) as judge:
                wanted, found = (first(model, expert) for model in (judge, mixed))
            assert np.array_equal(found, wanted), pair


@pytest.mark.parametrize("threads", [1, 3])
def test_several_experts_a_token_and_many_tokens(
    threads: int, tmp_path: Path, extension: bool
) -> None:
    """Sums of experts of different types, at every length that takes another way: against a twin
    whose experts are decoded, which rounds no activations (hence five times the project's bar); and
    without the extension bit for bit where one token is computed."""
    assert extension, "no C compiler: the extension cannot be tested here"
    file, twin = tmp_path / "mixed.gguf", tmp_path / "twin.gguf"
    shape = {"num_experts_per_tok": 4, "num_hidden_layers": 2}
    write(file, "per-expert", pairs(3), 256, **shape)
    write_padded_twin(GgufFile(file), twin)
    kinds = {GGML_TYPES[int(t.tensor_type)][0] for t in GgufFile(twin).reader.tensors}
    assert kinds == {"F32", "Q8_0"}
    tokens = [(5 * n * n + n) % SHAPE["vocab_size"] for n in range(300)]
    choices = CHOICES | {"threads": threads}
    with (
        PerExpertModel(file, **choices) as mixed,
        PerExpertModel(file, use_extension=False, **choices) as plain,
        LlamaCppModel(twin, **choices) as judge,
    ):
        for length in (1, 2, 31, 33, 300):
            wanted = judge.logits(tokens[:length])
            found = [model.logits(tokens[:length]).copy() for model in (mixed, plain)]
            assert max(mean_kl(wanted, logits) for logits in found) < 5e-4, length
            if length > MAX_TOKENS:  # Products of a prompt are ggml's in either.
                assert np.array_equal(*found)
        for model in (mixed, plain):
            model.reset()
        for token in tokens[:8]:
            assert np.array_equal(mixed.decode(token), plain.decode(token))


@pytest.mark.parametrize("use_extension", [True, False])
@pytest.mark.parametrize("length", [1, 40])
def test_an_expert_may_be_a_constant(use_extension: bool, length: int, tmp_path: Path) -> None:
    """Without neurons, but with a bias of its output: one so large that nothing else is left."""
    config = config_of(4)
    config = replace(config, expert_widths={0: (256, 0, 256, 0)})
    constant = torch.randn(256, generator=torch.Generator().manual_seed(2))
    head = torch.randn(SHAPE["vocab_size"], 256, generator=torch.Generator().manual_seed(3))
    stored = own(4) | {"token_embd.weight": embeddings(), "output.weight": head}
    stored |= {"blk.0.ffn_down.3.bias": 1e6 * constant}
    file = tmp_path / "model.gguf"
    floats = ("embed", "output")
    write_random(
        config, "per-expert", lambda e: "F32" if e.role in floats else "Q8_0", file, stored
    )
    wanted = (head @ (constant / constant.square().mean().sqrt())).numpy()
    with PerExpertModel(file, use_extension=use_extension, **CHOICES) as model:
        found = model.logits([3] * length)
    assert np.abs(found - wanted).max() < 1e-3
    why = "model.gguf has experts that give a constant, which llama.cpp cannot hold"
    twin = tmp_path / "twin.gguf"
    assert refusal(lambda: write_padded_twin(GgufFile(file), twin)) == (why, "leave --twin out")


def mean_kl(reference: Logits, candidate: Logits) -> float:
    p, q = (
        rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
        for rows in (reference.astype(np.float64), candidate.astype(np.float64))
    )
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def first(model: PerExpertModel | LlamaCppModel, token: int) -> Logits:
    model.reset()
    return model.evaluate([token]).copy()
