"""Conversations with tools, in the words of templates that like them in different ways."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.edits import refusal
from support.vocabularies import byte_vocabulary

from tenp_edge.runtime.chat_formats.calls import Tool
from tenp_edge.runtime.chat_prompt import chat_prompt

TOOL = Tool("now", {"type": "object", "properties": {"zone": {"type": "string"}}}, "The time.")
USER = {"role": "user", "content": "Hi"}
CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "Ü"}'}}
ASKED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
TOLD = {"role": "tool", "tool_call_id": "c1", "content": "noon"}
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
HERMES = (
    "{% if tools %}[{{ tools | tojson }}]{% endif %}{% for m in messages %}<{{ m.role }}>"
    "{{ m.content }}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}"
    "</tool_call>{% endfor %}{% endfor %}"
)
# Adds text to text: what is an object there is a mistake.
DEEPSEEK = (
    "{{ tools }}{% for m in messages %}{% for c in m.tool_calls or [] %}"
    "{{ '<｜tool▁calls▁begin｜>' + c.function.arguments }}{% endfor %}{% endfor %}"  # noqa: RUF001
)
GEMMA = (
    "{{ tools | length }}{% for m in messages %}<{{ m.role }}>{% for c in m.tool_calls or [] %}"
    "<|tool_call>call:{{ c.function.name }}{% endfor %}"
    "{% for r in m.tool_responses or [] %}({{ r.name }}: {{ r.response }}){% endfor %}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    + PLAIN
)


def text(template: str, messages: list[Any], tools: tuple[Tool, ...] = (), **variables: Any) -> str:
    vocabulary = byte_vocabulary(template=template)
    return chat_prompt(vocabulary, messages, tools, variables).text


def test_tools_go_to_the_template() -> None:
    found = text(HERMES, [USER, ASKED, TOLD], (TOOL,))
    described, rest = found.removeprefix("[[").split("]]", 1)
    assert json.loads(described) == TOOL.described()
    # The arguments are an object there.
    wanted = '<tool_call>{"name": "now", "arguments": {"zone": "Ü"}}</tool_call><tool>noon'
    assert rest == f"<user>Hi<assistant>{wanted}"


def test_arguments_as_text_where_the_template_wants_text() -> None:
    found = text(DEEPSEEK, [USER, ASKED, TOLD], (TOOL,))
    assert found.endswith('<｜tool▁calls▁begin｜>{"zone": "Ü"}')  # noqa: RUF001


def test_results_within_the_message_that_called() -> None:
    assert text(GEMMA, [USER, ASKED, TOLD], (TOOL,)) == (
        "1<user><assistant><|tool_call>call:now(now: noon)"
    )


def test_tools_in_words_where_the_template_knows_none() -> None:
    found = text(PLAIN, [{"role": "system", "content": "Be brief."}, USER, ASKED, TOLD], (TOOL,))
    assert found.startswith("<system>Be brief.\n\nYou may call one or more functions")
    assert json.dumps(TOOL.described()) in found
    assert found.endswith(
        '<user>Hi<assistant><tool_call>\n{"name": "now", "arguments": {"zone": "\\u00dc"}}\n'
        "</tool_call><user><tool_response>\nnoon\n</tool_response><assistant>"
    )


def test_without_a_system_role() -> None:
    system = {"role": "system", "content": "Be brief."}
    assert text(NO_SYSTEM, [system, USER]) == "<user>Be brief.\n\nHi<assistant>"


def test_calls_without_a_system_role() -> None:
    """In words where the template knows no tools, as objects where it does."""
    found = text(NO_SYSTEM, [USER, ASKED, TOLD], (TOOL,))
    assert found.startswith("<user>You may call one or more functions")
    assert "</tools>" in found and "\n\nHi<assistant><tool_call>" in found
    assert found.endswith("</tool_call><user><tool_response>\nnoon\n</tool_response><assistant>")
    refusing = NO_SYSTEM.removesuffix(PLAIN) + HERMES
    system = {"role": "system", "content": "Be brief."}
    found = text(refusing, [system, USER, ASKED, TOLD], (TOOL,))
    assert (
        '<user>Be brief.\n\nHi<assistant><tool_call>{"name": "now", "arguments": {"zone"' in found
    )


def test_variables_reach_the_template() -> None:
    template = (
        "{{ enable_thinking }} {{ reasoning_effort }} {{ bos_token }} {{ messages | length }}"
    )
    found = text(template, [USER], enable_thinking=False, reasoning_effort="low", bos_token="")
    assert found == "False low <begin> 1"


def test_thoughts_under_both_names() -> None:
    template = "{{ tools }}<tool_call></think>{{ messages[1].thinking }}"
    said = {"role": "assistant", "content": "Hi", "reasoning_content": "Hm."}
    assert text(template, [USER, said]).endswith("Hm.")


def test_marks_that_are_control_tokens() -> None:
    vocabulary = byte_vocabulary(["<|channel|>", "<|message|>", "<|other|>"], "<|channel|>")
    prompt = chat_prompt(vocabulary, [USER])
    assert prompt.control == {
        name: vocabulary.control[name] for name in ("<|channel|>", "<|message|>")
    }


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the file has no chat template"),
        (
            "{{ raise_exception('never') }}",
            "the chat template cannot render these messages: never",
        ),
    ],
)
def test_refused(template: str | None, message: str) -> None:
    vocabulary = byte_vocabulary(template=template)
    assert refusal(lambda: chat_prompt(vocabulary, [USER]))[0] == message


def test_marks_with_control_tokens_in_them() -> None:
    """Gemma 4 opens thoughts with a control token and a word."""
    marks = ["<|channel>", "<|tool_call>", "<|other>"]
    template = "{{ tools }}<|tool_call>call:<|channel>thought\n<channel|>" + PLAIN
    vocabulary = byte_vocabulary(marks, template=template)
    assert chat_prompt(vocabulary, [USER]).control.keys() == set(marks[:2])
