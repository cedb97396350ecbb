"""Calibration data: how text is sampled, and what is refused in which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.data_cases import Notes, refusal, written

from tenp_edge.calibration.text.domains import (
    load_domains,
    load_tokenizer,
    make_domains,
    save_domains,
    split_at,
)

LONG = "\n".join(f"line {n}: the quick brown fox counts to {n * n}" for n in range(400))


@pytest.fixture(scope="module")
def tokenizer(checkpoint_of: Callable[[str], Path]) -> Any:
    return load_tokenizer(checkpoint_of("qwen3_moe"))


def test_tokenizers_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal(lambda: load_tokenizer(tmp_path)) == (
        f"{tmp_path} has no tokenizer\ntry: copy tokenizer.json there"
    )
    written(tmp_path / "tokenizer.json", "{}")
    message = refusal(lambda: load_tokenizer(tmp_path))
    assert message.startswith(f"the tokenizer in {tmp_path} cannot be read: ")
    assert message.endswith("\ntry: download the model's tokenizer files again")


# -- sampling --------------------------------------------------------------------------------------


def test_samples_are_counted_by_domain_and_seeded(tokenizer: Any) -> None:
    texts = {"a": [LONG], "b": [LONG, LONG[::-1]]}
    first = make_domains(texts, tokenizer, 5, 32, seed=3)
    assert [(d.name, tuple(d.tokens.shape)) for d in first] == [("a", (5, 32)), ("b", (5, 32))]
    assert all((d.lengths == 32).all() for d in first)
    again, other = (make_domains(texts, tokenizer, 5, 32, seed=s) for s in (3, 4))
    assert all(torch.equal(x.tokens, y.tokens) for x, y in zip(first, again, strict=True))
    assert not any(torch.equal(x.tokens, y.tokens) for x, y in zip(first, other, strict=True))


def test_stored_domains_come_back_those_without_text_too(tokenizer: Any, tmp_path: Path) -> None:
    (domain,) = make_domains({"a": [LONG]}, tokenizer, 3, 32, seed=0)
    stored = split_at(domain, 3)
    for part in stored:
        save_domains(tmp_path / "slice.safetensors", [part])
        (again,) = load_domains(tmp_path / "slice.safetensors")
        assert again.name == "a" and again.tokens.dtype == torch.int64
        assert torch.equal(again.tokens, part.tokens)
        assert torch.equal(again.lengths, part.lengths)


def test_samples_do_not_repeat_text(tokenizer: Any) -> None:
    """With all of a text asked for, every line of it comes up once."""
    (found,) = make_domains({"a": [LONG]}, tokenizer, 10_000, 32, seed=0)
    text = "".join(
        tokenizer.decode(row[:length])
        for row, length in zip(found.tokens, found.lengths, strict=True)
    )
    assert text.count("fox") == 400


def test_samples_are_even_over_the_kinds_of_a_domain(tokenizer: Any) -> None:
    """Of a kind with ten times the text comes no more than of another."""
    kinds = {
        letter: [f"{letter} " * 200] * count for letter, count in {"a": 2, "b": 20, "c": 5}.items()
    }
    order, piece = [], max(len(tokenizer(texts[0]).input_ids) for texts in kinds.values())
    for seed in range(3):
        (found,) = make_domains({"x": kinds}, tokenizer, 60, 32, seed=seed)
        kinds_of_rows = [max("abc", key=tokenizer.decode(row).count) for row in found.tokens]
        counts = [kinds_of_rows.count(letter) for letter in "abc"]
        assert max(counts) - min(counts) <= piece // 32 + 1  # a row may be of two kinds
        order.append(kinds_of_rows[0])
    assert len(set(order)) > 1
    (everything,) = make_domains({"x": kinds}, tokenizer, 10_000, 32, seed=0)
    assert tokenizer.decode(everything.tokens.flatten()).count("b ") == 4000


def test_too_little_text_gives_fewer_samples_and_says_so(tokenizer: Any) -> None:
    notes = Notes()
    texts = {"short": ["only a few words here"]}
    (found,) = make_domains(texts, tokenizer, 4, 64, seed=0, progress=notes)
    count = int(found.lengths.sum())
    assert found.tokens.shape == (1, 64) and count < 64
    assert not found.tokens[0, count:].any()
    assert notes.lines == [
        f"domain 'short' has text for {count} tokens: 1 sequence instead of 4 x 64 tokens"
    ]


def test_only_what_the_samples_need_is_tokenised(tokenizer: Any) -> None:
    seen = 0

    class Counting:
        eos_token_id, bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id

        def __call__(self, text: str, **options: Any) -> Any:
            nonlocal seen
            seen += len(text)
            return tokenizer(text, **options)

    make_domains({"a": [LONG * 50]}, Counting(), 4, 32, seed=0)
    assert 0 < seen < len(LONG)


def test_every_sample_begins_as_the_tokenizer_begins_a_text(tokenizer: Any) -> None:
    class WithBegin:
        eos_token_id, bos_token_id = 0, 7

        def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            return {"input_ids": [7, *ids] if add_special_tokens else ids}

    (found,) = make_domains({"a": [LONG]}, WithBegin(), 4, 32, seed=0)
    assert found.tokens[:, 0].tolist() == [7] * 4
    assert (found.tokens[:, 1:] != 7).all()


def test_refused_samples(tokenizer: Any) -> None:
    assert refusal(lambda: make_domains({"a": [LONG]}, tokenizer, 0, 32, 0)) == (
        "--samples 0: every domain needs a sample\ntry: --samples 128"
    )
    assert refusal(lambda: make_domains({"a": [LONG]}, tokenizer, 4, 7, 0)) == (
        "--seq-len 7 is too short to calibrate on\ntry: --seq-len 512"
    )
    assert refusal(lambda: make_domains({"a": ["\n"]}, tokenizer, 4, 32, 0)) == (
        "domain 'a' holds no text\ntry: --data a=FILE with text"
    )
