"""The worst places of a text: which, and how they are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from support.gguf_cases import export
from support.plans import ragged_plan
from support.validating import domains_of

from tenp_edge.calibration.text.domains import load_tokenizer
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.disk import write_json
from tenp_edge.evaluation.disagreements import MOST, Disagreements
from tenp_edge.evaluation.divergence import score_tokens, standard_error
from tenp_edge.evaluation.validation import load_report, validate
from tenp_edge.forward.text_batch import Domain, TextBatch

VOCAB = 6


def spelled(ids: Sequence[int]) -> str:
    return "".join("abcdef"[number] for number in ids)


def batch_of(rows: int, length: int) -> TextBatch:
    tokens = torch.arange(rows * length).reshape(rows, length) % VOCAB
    domains = [Domain(name, tokens, torch.full((rows,), length)) for name in ("code", "prose")]
    return TextBatch.of(domains)


def test_the_worst_two_of_a_sequence_the_worst_first() -> None:
    batch = batch_of(1, 8)
    worst = Disagreements(batch)
    for row in range(2):
        reference = torch.zeros(4, VOCAB)
        candidate = reference.clone()
        for place, size in enumerate((0.0, 1.0, 3.0, 2.0)):
            candidate[place, 2] = size * (row + 1)
        targets = batch.tokens[row, 4:8]
        worst.add(row, 3, score_tokens(reference, candidate, targets), reference, candidate)
    found = worst.found(spelled)
    assert [(one.domain, one.before) for one in found] == [
        ("prose", "abcdef"),
        ("prose", "abcdefa"),
        ("code", "abcdef"),
        ("code", "abcdefa"),
    ]
    assert [one.next for one in found] == ["a", "b", "a", "b"]
    assert [one.after for one in found] == ["b", "", "b", ""]
    assert [one.kl for one in found] == sorted((one.kl for one in found), reverse=True)
    top = found[0].candidate[0]
    assert top.token == "c" and top.probability == pytest.approx(
        float(torch.softmax(torch.tensor([0.0, 0, 6, 0, 0, 0]), 0)[2])
    )
    assert len(found[0].reference) == 5
    assert found[0].reference[0].probability == pytest.approx(1 / VOCAB)


def test_equal_models_disagree_nowhere_and_many_are_cut() -> None:
    batch = batch_of(2 * MOST, 4)
    same, other = Disagreements(batch), Disagreements(batch)
    for row in range(len(batch)):
        reference, targets = torch.zeros(1, VOCAB), batch.tokens[row, 3:4]
        candidate = torch.eye(VOCAB)[:1] * (row + 1)
        same.add(row, 2, score_tokens(reference, reference, targets), reference, reference)
        other.add(row, 2, score_tokens(reference, candidate, targets), reference, candidate)
    assert same.found(spelled) == () and len(other.found(spelled)) == MOST


def test_a_report_has_them_as_text_of_the_validation(
    checkpoint_of: Callable[[str], Path], tmp_path: Path
) -> None:
    model = checkpoint_of("qwen3_moe")
    source = ModelSource(Checkpoint(model), ragged_plan(Checkpoint(model)))
    export(source, tmp_path / "model.gguf", "F32", "per-expert")
    domains, tokenizer = domains_of(model), load_tokenizer(model)
    report = validate(
        model, tmp_path / "model.gguf", domains, device="cpu", threads=1, decode=tokenizer.decode
    )
    texts = [tokenizer.decode(row) for domain in domains for row in domain.tokens.tolist()]
    assert report.examples and report.examples[0].kl == report.overall.max_kl
    for one in report.examples:
        assert any(f"{one.before}{one.next}{one.after}" in text for text in texts)
        assert 1 + 1e-9 > sum(guess.probability for guess in one.candidate) > 0
    write_json(tmp_path / "validation.json", report.to_json())
    assert load_report(tmp_path / "validation.json") == report


def test_the_standard_error_is_that_of_means() -> None:
    assert standard_error([0.5]) is None
    assert standard_error([1.0, 3.0]) == pytest.approx(1.0)
