"""What was thought and what was said, by the markers of real templates."""

from __future__ import annotations

import pytest

from tenp_edge.runtime.thinking import (
    MARKERS,
    TAGS,
    Markers,
    Part,
    Splitter,
    markers_of,
    remembered,
    switch_of,
)

HARMONY = markers_of('"<|start|>assistant<|channel|>analysis<|message|>" + message.thinking')
GEMMA = markers_of("{%- set parts = text.split('<channel|>') -%}")
# As Qwen3, DeepSeek-R1, gpt-oss and a template without thinking speak of it.
QWEN3 = "message.reasoning_content is string '</think>' enable_thinking is defined"
DEEPSEEK = "{% set content = content.split('</think>')[-1] %}{% if thinking %}"
PLAIN = "{{ message['role'] }}{{ message['content'] }}"


def parts(markers: Markers, pieces: list[str], thinking: bool = False) -> list[Part]:
    """All parts of ``pieces``, neighbours of one kind joined."""
    splitter = Splitter(markers, thinking)
    joined: list[Part] = []
    for number, piece in enumerate(pieces, 1):
        for part in splitter.feed(piece, last=number == len(pieces)):
            if joined and joined[-1].thinking == part.thinking:
                part = Part(joined.pop().text + part.text, part.thinking)
            joined.append(part)
    return joined


THOUGHT = [Part("Hm.\n", True), Part("\n\nYes", False)]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_markers_are_found_in_any_pieces(size: int) -> None:
    text = "<think>Hm.\n</think>\n\nYes"
    assert parts(TAGS, [text[at : at + size] for at in range(0, len(text), size)]) == THOUGHT


def test_the_prompt_may_have_opened_it() -> None:
    assert parts(TAGS, ["Hm.\n</thi", "nk>\n\nYes"], thinking=True) == THOUGHT


@pytest.mark.parametrize("text", ["Use <think> and </think>.", "a < b", "<thin", "", "</think>"])
def test_an_answer_may_speak_of_markers(text: str) -> None:
    assert parts(TAGS, list(text)) == ([Part(text)] if text else [])


def test_channels() -> None:
    said = [
        *("<|channel|>", "analysis", "<|message|>", "Hm.", "<|end|>", "<|start|>", "assistant"),
        *("<|channel|>", "final", "<|message|>", "Yes"),
    ]
    assert parts(HARMONY, said) == [Part("Hm.", True), Part("Yes")]
    assert parts(GEMMA, ["<|channel>", "thought\n", "Hm.", "<channel|>", "Yes"]) == [
        Part("Hm.", True),
        Part("Yes"),
    ]
    assert Splitter(HARMONY).spelled("<|channel|>") == "<|channel|>"
    assert Splitter(HARMONY).spelled("<|call|>") == ""


def test_templates_say_how_they_want_thoughts_back() -> None:
    assert remembered(PLAIN, "", "Yes") == {"role": "assistant", "content": "Yes"}
    assert remembered(QWEN3, "\nHm.\n", "\n\nYes") == {
        "role": "assistant",
        "content": "Yes",
        "reasoning_content": "Hm.",
    }
    assert remembered("message.thinking", "Hm.", "Yes")["thinking"] == "Hm."
    assert remembered(DEEPSEEK, "Hm.", "Yes")["content"] == "<think>Hm.</think>Yes"


def test_switches_and_markers_of_templates() -> None:
    assert switch_of(QWEN3) == "enable_thinking"
    assert switch_of(DEEPSEEK) == "thinking"
    assert switch_of("message.thinking message['thinking']") is switch_of(PLAIN) is None
    assert markers_of(PLAIN) is TAGS
    assert [markers_of(known.sign) for known in MARKERS] == list(MARKERS)
