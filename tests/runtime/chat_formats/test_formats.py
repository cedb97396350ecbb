"""Every way to write calls: found by its template, read as published models write it, and what the
grammar allows is what the reader reads."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
from jsonschema import validate
from support.vocabularies import byte_vocabulary

from tenp_edge.runtime.chat_formats.answer_grammar import AnswerGrammar
from tenp_edge.runtime.chat_formats.calls import Call, Tool
from tenp_edge.runtime.chat_formats.formats import (
    DESCRIBED,
    FORMATS,
    ChatFormat,
    format_of,
    thinking_of,
)
from tenp_edge.runtime.chat_formats.reading import AnswerReader
from tenp_edge.runtime.generation import Generation
from tenp_edge.runtime.grammars import GrammarCompiler, GrammarSource
from tenp_edge.runtime.sampling import SamplingOptions
from tenp_edge.runtime.thinking import KINDS, TAGS, Part, Thinking
from tenp_edge.runtime.vocabulary import Vocabulary

WEATHER = Tool(
    "get_weather",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Oslo", "Rome"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "place": {
                "type": "object",
                "properties": {"x": {"$ref": "#/$defs/X"}},
                "required": ["x"],
                "additionalProperties": False,
            },
            "hours": {"type": "array", "items": {"type": "integer"}, "maxItems": 3},
        },
        "required": ["city", "days", "place"],
        "$defs": {"X": {"type": "integer"}},
    },
)
TOOLS = (WEATHER, Tool("now", {}))
BY_NAME = {form.name: form for form in (*FORMATS, DESCRIBED)}
OSLO = {"city": "Oslo", "days": 3}
HERMES = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>'
)

# What the templates of published models say, and what those models write.
PUBLISHED = [
    (
        "Hermes",
        "Qwen3: <tool_call>{{ tools }}</tool_call>",
        HERMES,
    ),
    (
        "Qwen3-Coder",
        "{{ tools }} <tool_call> <function=...> <parameter=...>",
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n"
        "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>",
    ),
    (
        "GLM",
        "{{ tools }} <tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>",
    ),
    (
        "DeepSeek V3",
        "{{ tools }} <｜tool▁calls▁begin｜>function<｜tool▁sep｜>\n```json",  # noqa: RUF001
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"  # noqa: RUF001
        '```json\n{"city": "Oslo", "days": 3}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',  # noqa: RUF001
    ),
    (
        "DeepSeek V3.1",
        "{{ tools }} <｜tool▁calls▁begin｜>",  # noqa: RUF001
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"  # noqa: RUF001
        '{"city": "Oslo", "days": 3}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',  # noqa: RUF001
    ),
    (
        "Kimi",
        "{{ tools }} <|im_system|>tool_declare<|im_middle|>",
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
        '<|tool_call_argument_begin|>{"city": "Oslo", "days": 3}<|tool_call_end|>'
        "<|tool_calls_section_end|>",
    ),
    (
        "gpt-oss channels",
        "<|start|>assistant<|channel|>final<|message|>",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.get_weather <|constrain|>json<|message|>{"city": "Oslo", "days": 3}',
    ),
    (
        "Gemma",
        "{{ tools }} <|tool_call>call: <|channel> <channel|>",
        '<|tool_call>call:get_weather{city:<|"|>Oslo<|"|>,days:3}<tool_call|>',
    ),
    (
        "LFM2",
        "List of tools: <|tool_list_start|>{{ tools }}",
        '<|tool_call_start|>[get_weather(city="Oslo", days=3)]<|tool_call_end|>',
    ),
    (
        "Mistral",
        "[AVAILABLE_TOOLS]{{ tools }} [TOOL_CALLS]",
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}]',
    ),
    (
        "Mistral with [ARGS]",
        "{{ tools }} [TOOL_CALLS]name[ARGS]",
        '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo", "days": 3}',
    ),
    (
        "Granite 3",
        "{{ tools }} <|tool_call|>",
        '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}]',
    ),
    (
        "described",
        "{{ messages }}",
        HERMES,
    ),
]


def read(
    form: ChatFormat,
    thinking: Thinking | None,
    text: str,
    tools: Sequence[Tool] = TOOLS,
    prompt: str = "",
) -> list[Part]:
    """``text`` character by character; neighbours of a kind are put together."""
    reader = AnswerReader(form, thinking, tools, prompt)
    parts: list[Part] = []
    for part in [*(p for c in text for p in reader.feed(c)), *reader.finish()]:
        if parts and part.call is None and parts[-1].kind == part.kind:
            parts[-1] = Part(part.kind, parts[-1].text + part.text)
        else:
            parts.append(part)
    return parts


def calls_in(parts: Sequence[Part]) -> list[Call]:
    return [part.call for part in parts if part.call is not None]


@pytest.mark.parametrize(("name", "template", "text"), PUBLISHED)
def test_published(name: str, template: str, text: str) -> None:
    form, thinking = format_of(template), thinking_of(template)
    assert form.name == name
    parts = read(form, thinking, text)
    (call,) = calls_in(parts)
    assert (call.name, json.loads(call.arguments)) == ("get_weather", OSLO)
    assert [part.kind for part in parts if part.call is None] == (
        ["reasoning"] if form.channels else []
    )
    if not form.channels:
        assert read(form, thinking, text, tools=()) == [Part("content", text)]


def test_every_format_is_published() -> None:
    assert {name for name, _, _ in PUBLISHED} == set(BY_NAME)


@pytest.mark.parametrize("name", BY_NAME)
def test_what_the_grammar_allows_is_read(name: str) -> None:
    """Of random logits, the grammar makes calls that are valid under the schema of their tool."""
    form, vocabulary = BY_NAME[name], byte_vocabulary(BY_NAME[name].marks())
    control = {
        mark: token for mark in form.marks() if (token := vocabulary.control.get(mark)) is not None
    }
    grammar = AnswerGrammar(form, None, "", control)
    compiler = GrammarCompiler(vocabulary, vocabulary.size)
    source = grammar.calls(TOOLS, parallel=True)
    for seed in range(4):
        text, finished = generated(vocabulary, compiler, source, frozenset(control.values()), seed)
        assert finished, text
        parts = read(form, None, text)
        calls = calls_in(parts)
        assert calls and len(calls) == len(parts), (text, parts)
        for call in calls:
            tool = next(tool for tool in TOOLS if tool.name == call.name)
            validate(json.loads(call.arguments), {"type": "object", **tool.parameters})
        assert not form.single or len(calls) == 1


def generated(
    vocabulary: Vocabulary,
    compiler: GrammarCompiler,
    source: GrammarSource,
    shown: frozenset[int],
    seed: int,
) -> tuple[str, bool]:
    """Text of random logits, which like to end, and whether it ended by itself."""
    options = SamplingOptions(
        seed=seed, temperature=1.0, grammar=compiler.compiled(source), shown=shown
    )
    generation = Generation(vocabulary, [1], options, 1500)
    generator = np.random.default_rng(seed)
    pieces = []
    while not generation.finished:
        logits = generator.normal(size=vocabulary.size).astype(np.float32)
        logits[0] += 6
        pieces.append(generation.take(logits))
    return "".join(piece.text for piece in pieces), pieces[-1].finish == "stop"


def test_arguments_of_any_kind() -> None:
    """true is a schema, of an argument and of the items of a list."""
    form = BY_NAME["Gemma"]
    vocabulary = byte_vocabulary(list(form.marks()))
    schema = {"properties": {"a": True, "b": {"type": "array", "items": True}}}
    source = AnswerGrammar(form, None, "", vocabulary.control).calls([Tool("now", schema)], False)
    constraint = GrammarCompiler(vocabulary, vocabulary.size).compiled(source).constraint()
    for token in vocabulary.tokenize("<|tool_call>call:now{a:1,b:[2,3]}", add_special=False):
        assert constraint.allowed()[token]
        constraint.accept(token)


# -- thoughts and texts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "prompt", "wanted"),
    [
        ("Hello ", "", [("content", "Hello ")]),
        (
            "<think>\nHm, so.\n</think>\n\nHello",
            "",
            [("reasoning", "Hm, so."), ("content", "Hello")],
        ),
        # The prompt has begun it already, or ended it.
        ("Hm.</think>Hello", "<think>\n", [("reasoning", "Hm."), ("content", "Hello")]),
        ("Hello", "<think>\n\n</think>\n\n", [("content", "Hello")]),
        # Who has begun to answer may speak of thoughts.
        ("Write <think> a </think>", "", [("content", "Write <think> a </think>")]),
        # It never ends.
        ("<think>Hm", "", [("reasoning", "Hm")]),
        # What only looks like a mark.
        ("a <thin b <tool_cal", "", [("content", "a <thin b <tool_cal")]),
        ("<thin", "", [("content", "<thin")]),
        ("a < b</think>", "", [("content", "a < b</think>")]),
        ("\n<think>Hm", "", [("reasoning", "Hm")]),
        # A call that is none is text.
        (
            "<tool_call>\nnow()\n</tool_call>",
            "",
            [("content", "<tool_call>\nnow()\n</tool_call>")],
        ),
        ('<tool_call>{"name": "n', "", [("content", '<tool_call>{"name": "n')]),
    ],
)
def test_thoughts(text: str, prompt: str, wanted: list[tuple[str, str]]) -> None:
    parts = read(BY_NAME["Hermes"], TAGS, text, prompt=prompt)
    assert [(part.kind, part.text) for part in parts] == wanted


@pytest.mark.parametrize("thinking", [*KINDS, None])
def test_thoughts_in_every_kind_of_marks(thinking: Thinking | None) -> None:
    """Also after tags that the template does not name; in pieces of any size."""
    kind = thinking or TAGS
    text = f"{kind.opens}Hm.\n{kind.closes}\n\nYes"
    for size in (1, 2, 3, 100):
        reader = AnswerReader(DESCRIBED, thinking)
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        parts = [*(part for piece in pieces for part in reader.feed(piece)), *reader.finish()]
        thought = "".join(part.text for part in parts if part.thinking)
        assert (thought, "".join(part.text for part in parts)) == ("Hm.", "Hm.Yes")


def test_text_before_calls_and_several_of_them() -> None:
    one = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    parts = read(BY_NAME["Hermes"], TAGS, f"Let me see.\n{one}\n{one}\n")
    assert [part.kind for part in parts] == ["content", "call", "call"]
    assert parts[0].text == "Let me see."


def test_channels() -> None:
    form, thinking = BY_NAME["gpt-oss channels"], thinking_of("<|channel|>")
    text = (
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello"
    )
    assert [(part.kind, part.text) for part in read(form, thinking, text, tools=())] == [
        ("reasoning", "Hm."),
        ("content", "Hello"),
    ]


@pytest.mark.parametrize("name", ["Hermes", "gpt-oss channels"])
@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        ("regex", "[0-9]{3}"),
        ("gbnf", "root ::= [0-9]{3}"),
        ("lark", "start: /[0-9]{3}/"),
        ("json_schema", '{"type": "integer", "minimum": 100}'),
    ],
)
def test_an_asked_form_after_thoughts(name: str, kind: str, asked: str) -> None:
    form = BY_NAME[name]
    thinking = thinking_of("<|channel|>") if form.channels else TAGS
    assert thinking is not None
    vocabulary = byte_vocabulary([*form.marks(), thinking.opens, thinking.closes])
    grammar = AnswerGrammar(form, thinking, "", vocabulary.control)
    compiler = GrammarCompiler(vocabulary, vocabulary.size)
    source = grammar.text(GrammarSource(kind, asked))
    text = f"{thinking.opens}Hm, 5?{thinking.closes}{form.final}"
    constraint = compiler.compiled(source).constraint()
    for token in vocabulary.tokenize(f"{text}12", add_special=False):
        assert constraint.allowed()[token], (text, token)
        constraint.accept(token)
    allowed = constraint.allowed()
    assert sorted(vocabulary.piece(int(token)) for token in np.flatnonzero(allowed)) == [
        str(digit).encode() for digit in range(10)
    ]
