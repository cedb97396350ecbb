"""The reference models' script: its splits, its resuming, and what it says of expert use."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import reference_models
import torch
import train_reference
from moe_training import expert_counts
from train_reference import Recipe, batch, by_split, divergence, prepare, split_of, train_slice

from tenp_edge.checkpoint.files import Checkpoint

RECIPE = replace(Recipe(), vocab_size=400, sequence_length=32, sequences_per_step=2)


def test_divergence_of_no_and_of_every_difference() -> None:
    apart = {name: torch.eye(4)[[i]].double() for i, name in enumerate(("a", "b", "c", "d"))}
    found = divergence(apart)
    assert (found["js_bits"], found["variation"]) == (2.0, 1.0)
    same = dict.fromkeys(("a", "b"), torch.full((2, 4), 0.25).double())
    assert (divergence(same)["js_bits"], divergence(same)["variation"]) == (0.0, 0.0)


def test_every_piece_of_text_is_in_one_split() -> None:
    texts = [f"document {i} " * 9000 for i in range(40)]
    found = by_split(texts)
    assert sum(map(len, found.values())) == 40 * math.ceil(len(texts[0]) / 40_000)
    assert all(split_of(piece) == split for split, pieces in found.items() for piece in pieces)


def test_a_domain_is_read_as_often_as_the_root_of_its_size() -> None:
    tokens = {"large": np.zeros(90_000, np.uint16), "small": np.ones(10_000, np.uint16)}
    rows = torch.cat([batch(tokens, step, Recipe()) for step in range(100)])
    assert rows.shape == (1600, 257)
    assert abs(float(rows[:, 0].double().mean()) - 0.25) < 0.03  # sqrt: 300 to 100
    assert torch.equal(batch(tokens, 7, Recipe()), batch(tokens, 7, Recipe()))


def test_choices_are_counted() -> None:
    chosen = torch.tensor([[3, 0], [3, 1], [3, 1]])
    assert expert_counts(chosen, 5).tolist() == [1, 2, 0, 3, 0]


def test_a_killed_training_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    small = {"hidden_size": 32, "num_hidden_layers": 2}
    monkeypatch.setattr(reference_models, "_COMMON", reference_models._COMMON | small)
    kind, own = reference_models.CONFIGS["qwen3_moe"]
    shape = {"num_experts": 8, "moe_intermediate_size": 32, "head_dim": 16, "intermediate_size": 64}
    monkeypatch.setitem(reference_models.CONFIGS, "qwen3_moe", (kind, own | shape))
    monkeypatch.setattr(
        train_reference,
        "corpus_texts",
        lambda _: {
            name: [f"{name} {i} and {i * i} of them. " * 30 for i in range(60)] for name in "ab"
        },
    )
    monkeypatch.setattr(train_reference, "TOKENIZER_CHARS", 40_000)
    logs = []
    for name, slices in (("once", [4]), ("twice", [2, 2])):
        work = tmp_path / name
        prepare(work, corpus, RECIPE)
        for steps in slices:
            train_slice(work, "qwen3_moe", RECIPE, steps=4, slice_steps=steps)
        logs.append(json.loads((work / "qwen3_moe" / "log.json").read_text()))
        with gzip.open(work / "heldout" / "a.jsonl.gz", "rt") as lines:
            assert all(split_of(json.loads(line)["text"]) == "heldout" for line in lines)
    assert [len(log) for log in logs] == [1, 2]
    assert logs[0][-1]["sha256"] == logs[1][-1]["sha256"]
    assert Checkpoint(tmp_path / "once" / "qwen3_moe" / "model").config.num_experts == 8
