"""All domains' sequences in one batch: rows, padding, runs and identity."""

from __future__ import annotations

import torch

from tenp_edge.forward.text_batch import Domain, TextBatch, batches

CODE = Domain("code", torch.tensor([[5, 6, 7, 8], [9, 3, 0, 0]]), torch.tensor([4, 2]))
PROSE = Domain("prose", torch.tensor([[4, 4, 4, 4, 4, 1]]), torch.tensor([5]))


def test_domains_lie_one_after_the_other() -> None:
    text = TextBatch.of([CODE, PROSE])
    assert text.tokens.tolist() == [[5, 6, 7, 8, 0, 0], [9, 3, 0, 0, 0, 0], [4, 4, 4, 4, 4, 1]]
    assert text.spans == {"code": range(2), "prose": range(2, 3)}
    assert (len(text), text.seq_len, text.token_count) == (3, 6, 11)
    assert text.active.sum(dim=1).tolist() == [4, 2, 5] and not text.active[2, 5]
    assert text.trimmed().tokens.tolist() == [row[:5] for row in text.tokens.tolist()]
    assert TextBatch.of([CODE, PROSE], max_sequences=1).spans == {
        "code": range(1),
        "prose": range(1, 2),
    }


def test_runs_of_rows() -> None:
    text = TextBatch.of([CODE, PROSE])
    assert text.runs(12) == [slice(0, 2), slice(2, 3)]
    assert text.runs(18) == [slice(0, 3)]
    assert text.domain_runs(18) == [slice(0, 2), slice(2, 3)]
    assert [text.domain_of(run) for run in text.domain_runs(6)] == ["code", "code", "prose"]
    assert batches(2, 1000, 10) == [slice(0, 1), slice(1, 2)]


def test_identity_is_of_the_real_tokens() -> None:
    """However wide it is padded and whatever the padding holds; names and order count."""
    found = TextBatch.of([CODE, PROSE]).digest
    wide = Domain("code", torch.tensor([[5, 6, 7, 8, 2], [9, 3, 2, 2, 2]]), CODE.lengths)
    assert TextBatch.of([wide, PROSE]).digest == found
    other = Domain("text", CODE.tokens, CODE.lengths)
    shorter = Domain("code", CODE.tokens, torch.tensor([4, 1]))
    for domains in ([PROSE, CODE], [other, PROSE], [shorter, PROSE], [CODE]):
        assert TextBatch.of(domains).digest != found
