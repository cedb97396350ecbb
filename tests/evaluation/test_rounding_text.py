"""How much of the held-out text measuring rounding reads."""

from __future__ import annotations

from support.calibrating import domain

from tenp_edge.evaluation.rounding_text import halved, scored_after_start, shortened


def test_sequences_are_halved_but_not_made_too_short() -> None:
    assert halved(domain("code", 3, 512)).lengths.tolist() == [256] * 3
    assert halved(domain("code", 3, 96)).tokens.shape == (3, 64)
    assert halved(domain("code", 3, 48)).lengths.tolist() == [48, 48, 32]


def test_nearly_every_token_is_scored() -> None:
    assert scored_after_start(256) == range(32, 255)
    assert scored_after_start(16) == range(2, 15)


def test_text_is_shortened_evenly() -> None:
    domains = [domain("code", 4, 96), domain("prose", 3, 96)]
    assert shortened(domains, 1000) == domains
    some = shortened(domains, 400)
    assert [part.name for part in some] == ["code", "prose"]
    assert [tuple(part.tokens.shape) for part in some] == [(2, 96), (2, 96)]
    fewest = shortened(domains, 10)
    assert [part.lengths.tolist() for part in fewest] == [[64], [64]]
