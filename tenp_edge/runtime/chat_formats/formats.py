"""The ways in which models write thoughts and calls: a row each, found by the chat template.

A row is chosen by marks that the template itself writes, never by a model's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from tenp_edge.runtime.chat_formats.calls import CallSyntax
from tenp_edge.runtime.chat_formats.gemma_calls import QUOTE, GemmaCall
from tenp_edge.runtime.chat_formats.json_calls import HeadedCall, JsonCall, MistralCall
from tenp_edge.runtime.chat_formats.python_calls import PythonCall
from tenp_edge.runtime.chat_formats.tagged_calls import GLM, QWEN_CODER
from tenp_edge.runtime.thinking import Thinking, kind_of


@dataclass(frozen=True)
class ChatFormat:
    """One way to write calls.

    ``recognised``: what a template of this format has, a regular expression. Calls stand between
    ``opens`` and ``closes``, all of them between the two marks of ``section``, with ``between`` in
    between. ``described``: the template knows no tools, so a system message describes them.
    """

    name: str
    recognised: str
    opens: str
    closes: str
    syntax: CallSyntax
    section: tuple[str, str] = ("", "")
    between: str = ""
    described: bool = False
    single: bool = False  # one call an answer
    # Marks that stand within calls.
    inner: tuple[str, ...] = ()
    # The answer is cut into channels (gpt-oss); the text that opens the final one.
    channels: bool = False
    final: str = ""

    def marks(self) -> Iterator[str]:
        """Every mark, also those that may be control tokens."""
        yield from filter(None, (self.opens, self.closes, *self.section, *self.inner))


_DEEPSEEK = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")  # noqa: RUF001  its own marks
_DEEPSEEK_CALL = ("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")  # noqa: RUF001
_SEPARATOR = "<｜tool▁sep｜>"  # noqa: RUF001
_DEEPSEEK_PATTERN = (
    rf"(?:function{_SEPARATOR})?(?P<name>[^\n<]+?)"
    rf"(?:{_SEPARATOR}|\n```json\n)(?P<arguments>\{{.*?\}})?(?:\n```)?"
)
CHANNEL, MESSAGE, START = "<|channel|>", "<|message|>", "<|start|>"
_CHANNELS = (CHANNEL, MESSAGE, START, "<|end|>", "<|constrain|>", "<|call|>", "<|return|>")

# The first that fits counts: the more particular marks come first.
FORMATS = (
    ChatFormat(
        "gpt-oss channels",
        r"<\|channel\|>",
        "",
        "",
        HeadedCall(
            f"{CHANNEL}commentary to=functions.{{}} <|constrain|>json{MESSAGE}",
            rf".*?to=functions\.(?P<name>[\w.-]+).*?{MESSAGE.replace('|', chr(92) + '|')}"
            r"(?P<arguments>\{.*\})?",
        ),
        single=True,
        inner=_CHANNELS,
        channels=True,
        final=f"{CHANNEL}final{MESSAGE}",
    ),
    ChatFormat(
        "Gemma",
        r"<\|tool_call>call:",
        "<|tool_call>",
        "<tool_call|>",
        GemmaCall(),
        inner=(QUOTE,),
    ),
    ChatFormat(
        "Kimi",
        r"<\|tool_calls_section_begin\|>|tool_declare",
        "<|tool_call_begin|>",
        "<|tool_call_end|>",
        HeadedCall(
            "functions.{}:0<|tool_call_argument_begin|>",
            r"(?P<id>(?:functions\.)?(?P<name>[\w.-]+?)(?::\d+)?)\s*"
            r"<\|tool_call_argument_begin\|>\s*(?P<arguments>\{.*\})",
        ),
        section=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
        inner=("<|tool_call_argument_begin|>",),
    ),
    ChatFormat(
        "DeepSeek V3",
        rf"{_DEEPSEEK[0]}(?s:.*)```json",
        *_DEEPSEEK_CALL,
        HeadedCall(f"function{_SEPARATOR}{{}}\n```json\n", _DEEPSEEK_PATTERN, "\n```"),
        section=_DEEPSEEK,
        between="\n",
        inner=(_SEPARATOR,),
    ),
    ChatFormat(
        "DeepSeek V3.1",
        _DEEPSEEK[0],
        *_DEEPSEEK_CALL,
        HeadedCall(f"{{}}{_SEPARATOR}", _DEEPSEEK_PATTERN),
        section=_DEEPSEEK,
        inner=(_SEPARATOR,),
    ),
    ChatFormat("GLM", "<arg_key>", "<tool_call>", "</tool_call>", GLM, between="\n"),
    ChatFormat(
        "Qwen3-Coder",
        "<function=",
        "<tool_call>",
        "</tool_call>",
        QWEN_CODER,
        between="\n",
    ),
    ChatFormat(
        "LFM2",
        r"<\|tool_call_start\|>|<\|tool_list_start\|>",
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        PythonCall(),
    ),
    ChatFormat(
        "Mistral with [ARGS]",
        r"\[ARGS\]",
        "[TOOL_CALLS]",
        "",
        MistralCall(named=True),
        inner=("[ARGS]", "[CALL_ID]"),
    ),
    ChatFormat(
        "Mistral", r"\[TOOL_CALLS\]", "[TOOL_CALLS]", "", MistralCall(named=False), single=True
    ),
    ChatFormat(
        "Granite 3",
        r"<\|tool_call\|>",
        "<|tool_call|>",
        "",
        JsonCall(("", ""), listed=True),
        single=True,
    ),
    ChatFormat("Hermes", "<tool_call>", "<tool_call>", "</tool_call>", JsonCall(), between="\n"),
)
# For templates that know no tools, or write them in a way that is not known here.
DESCRIBED = ChatFormat(
    "described",
    "",
    "<tool_call>",
    "</tool_call>",
    JsonCall(),
    between="\n",
    described=True,
)
_OSS_THINKING = Thinking(f"{CHANNEL}analysis{MESSAGE}", f"<|end|>{START}assistant")


def format_of(template: str | None) -> ChatFormat:
    """How answers to prompts of ``template`` hold calls."""
    template = template or ""
    if "tools" not in template and CHANNEL not in template:
        return DESCRIBED
    found = (row for row in FORMATS if re.search(row.recognised, template))
    return next(found, DESCRIBED)


def thinking_of(template: str | None) -> Thinking | None:
    """How answers to prompts of ``template`` hold thoughts; None where they hold none."""
    template = template or ""
    if format_of(template).channels:
        return _OSS_THINKING
    return kind_of(template)
