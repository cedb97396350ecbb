"""How templates speak of what was thought."""

from __future__ import annotations

from tenp_edge.runtime.thinking import KINDS, TAGS, Part, kind_of, remembered, switch_of

# As Qwen3, DeepSeek-R1 and a template without thinking speak of it.
QWEN3 = "message.reasoning_content is string '</think>' enable_thinking is defined"
DEEPSEEK = "{% set content = content.split('</think>')[-1] %}{% if thinking %}"
PLAIN = "{{ message['role'] }}{{ message['content'] }}"
THOUGHT = (Part("reasoning", "H"), Part("reasoning", "m."), Part("content", "Yes"))


def test_templates_say_how_they_want_thoughts_back() -> None:
    assert remembered(PLAIN, THOUGHT[2:]) == {"role": "assistant", "content": "Yes"}
    assert remembered(QWEN3, THOUGHT) == {
        "role": "assistant",
        "content": "Yes",
        "reasoning_content": "Hm.",
    }
    assert remembered("message.thinking", THOUGHT)["thinking"] == "Hm."
    for template in (DEEPSEEK, PLAIN):
        assert remembered(template, THOUGHT)["content"] == "<think>\nHm.\n</think>\n\nYes"


def test_switches_and_marks_of_templates() -> None:
    assert switch_of(QWEN3) == "enable_thinking"
    assert switch_of(DEEPSEEK) == "thinking"
    assert switch_of("message.thinking message['thinking']") is switch_of(PLAIN) is None
    assert kind_of(PLAIN) is None and kind_of(QWEN3) is TAGS
    assert [kind_of(kind.closes) for kind in KINDS] == list(KINDS)
