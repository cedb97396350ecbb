"""How Anthropic's messages end."""

from __future__ import annotations

import json

import pytest

from tenp_edge.runtime.generation import Piece
from tenp_edge.serving.answers.anthropic import MessageAnswer, anthropic_error
from tenp_edge.serving.answers.choice import Choice
from tenp_edge.serving.refusal import error_body


@pytest.mark.parametrize(
    ("last", "reason", "sequence"),
    [
        (Piece(6, "b", "stop", word="END"), "stop_sequence", "END"),
        (Piece(0, "", "stop"), "end_turn", None),
        (Piece(6, "b", "length"), "max_tokens", None),
    ],
)
def test_the_stop_sequence_is_the_one_that_ended_it(
    last: Piece, reason: str, sequence: str | None
) -> None:
    answer = MessageAnswer([Choice()], 3, "model")
    lines = [line for piece in (Piece(5, "a"), last) for line in _events(answer, piece)]
    lines += answer.tail()
    whole = answer.whole()
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
    told = [json.loads(line.partition("data: ")[2]) for line in lines]
    assert told[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def _events(answer: MessageAnswer, piece: Piece) -> list[str]:
    return answer.events(0, answer.add(0, piece))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_kinds_of_errors(status: int, kind: str) -> None:
    found = anthropic_error(error_body(status, "no"), status)
    assert found == {"type": "error", "error": {"type": kind, "message": "no"}}
