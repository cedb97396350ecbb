"""Answers as they are written: with thoughts, for pipes, terminals and programs."""

from __future__ import annotations

import io
import json
from collections.abc import Generator, Sequence

import pytest

from tenp_edge.cli.chat import answers
from tenp_edge.cli.chat.answers import JsonScreen, Summary, TextScreen
from tenp_edge.runtime.generation import Piece
from tenp_edge.runtime.thinking import Part, Reply, Spoken

THOUGHT = tuple(
    Part(kind, text)
    for kind, text in (("reasoning", "Hm"), ("reasoning", "."), ("content", "Ye"), ("content", "s"))
)


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def reply(parts: Sequence[Part], finish: str | None = "stop") -> Reply:
    def spoken() -> Generator[Spoken, None, None]:
        for number, part in enumerate(parts, 1):
            ending = finish if number == len(parts) else None
            if ending == "interrupted":
                raise KeyboardInterrupt
            yield Spoken(Piece(number, part.text, ending), [part])

    return Reply(10, spoken())


def written(out: io.StringIO, parts: Sequence[Part], finish: str = "stop") -> str:
    answers.write(reply(parts, finish), TextScreen(out), lambda _: None, 64, None)
    return out.getvalue()


def test_a_pipe_gets_thoughts_between_tags() -> None:
    assert written(io.StringIO(), THOUGHT) == "<think>\nHm.\n</think>\n\nYes\n"


def test_a_terminal_dims_thoughts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert written(Tty(), THOUGHT) == "\x1b[2mHm.\n\x1b[22m\nYes\n"
    assert written(Tty(), (*THOUGHT[:2], THOUGHT[1]), "interrupted") == "\x1b[2mHm.\n\x1b[22m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert written(Tty(), THOUGHT) == "<think>\nHm.\n</think>\n\nYes\n"


def test_json_lines() -> None:
    out = io.StringIO()
    answers.write(reply(THOUGHT), JsonScreen(out), lambda _: None, 64, None)
    records = [json.loads(line) for line in out.getvalue().splitlines()]
    assert records[:2] == [{"thinking": "Hm"}, {"thinking": "."}]
    assert records[2:4] == [{"text": "Ye"}, {"text": "s"}]
    last = records[4]
    assert last.pop("tokens_per_second") > 0 and last.pop("first_token_seconds") >= 0
    assert last == {
        "finish": "stop",
        "prompt_tokens": 10,
        "generated_tokens": 4,
        "used": 14,
        "context": 64,
    }


@pytest.mark.parametrize(
    ("finish", "most", "why"),
    [
        ("stop", None, []),
        ("length", 4, ["the answer was cut after 4 tokens, as -n says"]),
        ("length", None, ["the answer was cut: the context of 64 tokens is full"]),
        ("interrupted", None, ["stopped"]),
    ],
)
def test_an_answer_that_is_not_whole_says_why(
    finish: str, most: int | None, why: list[str]
) -> None:
    said: list[str] = []
    answers.write(reply(THOUGHT, finish), JsonScreen(io.StringIO()), said.append, 64, most)
    assert said == []
    answers.write(reply(THOUGHT, finish), TextScreen(io.StringIO()), said.append, 64, most)
    *reasons, last = said
    used = 13 if finish == "interrupted" else 14
    assert reasons == why and last.endswith(f" tokens/s, {used} of 64 tokens")


def test_one_token_has_no_speed() -> None:
    assert str(Summary("stop", 3, 1, 4, 64, 0.1, None)) == "4 of 64 tokens"
