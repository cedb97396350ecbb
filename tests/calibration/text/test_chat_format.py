"""Conversations through the model's template: what it is given, and what is said when it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.data_cases import Notes, refusal

from tenp_edge.calibration.text.chat_format import ChatWriter
from tenp_edge.calibration.text.domains import load_tokenizer
from tenp_edge.calibration.text.records import Chat, Record, parse_record

SIMPLE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
# As DeepSeek's: arguments are joined as text.
ARGUMENTS_AS_TEXT = (
    "{% for m in messages %}{{ m['content'] }}{% for c in m['tool_calls'] or [] %}"
    "{{ '[' + c['function']['name'] + c['function']['arguments'] + ']' }}{% endfor %}{% endfor %}"
)
# As Qwen's: contents are joined, arguments written as JSON, schemas listed.
JOINED = (
    "{% for t in tools or [] %}{{ t['name'] }};{% endfor %}{% for m in messages %}"
    "{{ '<' + m['role'] + '>' + m['content'] }}{% for c in m['tool_calls'] or [] %}"
    "[{{ c['function']['name'] }}{{ c['function']['arguments'] | tojson }}]{% endfor %}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}"
    "{% endif %}" + SIMPLE
)
NOTHING = "{{ raise_exception('not for\nyou') }}"

TALK = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"name": "w", "arguments": {"d": 1}}],
        },
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "Rain."},
    ],
    "tools": [{"name": "w"}],
}
PLAIN = 'System: Be brief.\n\nUser: Weather?\n\nAssistant: w({"d": 1})\n\nTool: rain\n\nAssistant: '


@pytest.fixture
def tokenizer(checkpoint_of: Callable[[str], Path]) -> Any:
    return load_tokenizer(checkpoint_of("qwen3_moe"))


def written(
    tokenizer: Any, template: str | None, *records: Record, lenient: bool = False
) -> tuple[list[str], list[str]]:
    """Texts and notes."""
    tokenizer.chat_template, notes = template, Notes()
    writer = ChatWriter(tokenizer, notes)
    return [writer.text("here", record, lenient=lenient) for record in records], notes.lines


def test_templates_are_given_calls_as_they_take_them(tokenizer: Any) -> None:
    talk = parse_record("here", TALK)
    assert written(tokenizer, JOINED, talk) == (
        ['w;<system>Be brief.<user>Weather?<assistant>[w{"d": 1}]<tool>rain<assistant>Rain.'],
        [],
    )
    assert written(tokenizer, ARGUMENTS_AS_TEXT, talk) == (
        ['Be brief.Weather?[w{"d": 1}]rainRain.'],
        [],
    )
    assert written(tokenizer, SIMPLE, talk, talk) == (
        ['<system>Be brief.<user>Weather?<assistant>w({"d": 1})<tool>rain<assistant>Rain.'] * 2,
        [],
    )


def test_without_a_template_speakers_are_named_and_it_is_said_once(tokenizer: Any) -> None:
    talk = parse_record("here", TALK)
    note = "the tokenizer has no chat template: conversations are written as User: ..."
    assert written(tokenizer, None, talk, talk) == ([PLAIN + "Rain.\n"] * 2, [note])
    assert written(tokenizer, None, talk, lenient=True) == ([PLAIN + "Rain.\n"], [])


def test_a_template_without_a_system_role(tokenizer: Any) -> None:
    record = parse_record("here", {"messages": TALK["messages"][:2]})
    expected = ["<user>Be brief.\n\nWeather?"]
    assert written(tokenizer, NO_SYSTEM, record) == (
        expected,
        ["the chat template has no system role: it goes into the first user turn"],
    )
    assert written(tokenizer, NO_SYSTEM, record, lenient=True) == (expected, [])


def test_a_template_that_refuses(tokenizer: Any) -> None:
    record = parse_record("here", {"prompt": "a", "completion": "b"})
    assert refusal(lambda: written(tokenizer, NOTHING, record)) == (
        "here: the chat template refuses it: not for\n"
        "try: one system turn at most, then user and assistant in turn"
    )
    assert written(tokenizer, NOTHING, record, lenient=True) == (["User: a\n\nAssistant: b\n"], [])


def test_parts_left_out_are_said_once(tokenizer: Any) -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "hm"}]
    record = parse_record("here", {"messages": [{"role": "user", "content": parts}]})
    assert written(tokenizer, SIMPLE, record, record) == (
        ["<user>hm"] * 2,
        ["parts of messages that are no text are left out (image), first in here"],
    )


def test_half_a_character_is_refused(tokenizer: Any) -> None:
    expected = (
        "here holds half a character (\\udc00), which no tokenizer reads\n"
        "try: whole characters: both halves of the pair, or none"
    )
    chat = Chat(({"role": "user", "content": "a\udc00"},))
    for record in ("\udc00", chat):
        assert refusal(lambda record=record: written(tokenizer, SIMPLE, record)) == expected
