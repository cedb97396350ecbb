"""Items of the Responses API, of an answer with thoughts, a text and a call."""

from __future__ import annotations

import json
from typing import Any

from support.vocabularies import byte_vocabulary

from tenp_edge.runtime.chat_formats.calls import Tool
from tenp_edge.runtime.chat_formats.formats import FORMATS, thinking_of
from tenp_edge.runtime.chat_formats.reading import AnswerReader
from tenp_edge.runtime.generation import Piece
from tenp_edge.serving.answers.choice import Choice
from tenp_edge.serving.answers.responses import ResponseAnswer

TEXT = '<think>Hm.</think>I ask.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
HERMES = next(form for form in FORMATS if form.name == "Hermes")


def answered(text: str, finish: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The answer in one piece, and the events of its stream."""
    choice = Choice(AnswerReader(HERMES, thinking_of("</think>"), [Tool("now", {})]))
    answer = ResponseAnswer([choice], 5, "model", byte_vocabulary([]), {"store": False})
    lines = answer.head()
    for number, character in enumerate(text, 1):
        piece = Piece(ord(character), character, finish if number == len(text) else None)
        lines += answer.events(0, answer.add(0, piece))
    lines += answer.tail()
    return answer.whole(), [json.loads(line.partition("data: ")[2]) for line in lines]


def test_the_items_of_an_answer() -> None:
    whole, events = answered(TEXT, "stop")
    thought, said, call = whole["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert said["content"][0]["text"] == "I ask." and said["status"] == "completed"
    assert (call["name"], call["arguments"], whole["status"]) == ("now", "{}", "completed")
    assert whole["usage"]["total_tokens"] == 5 + len(TEXT)
    assert whole["usage"]["output_tokens_details"]["reasoning_tokens"] == 3
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert done == whole["output"]
    deltas = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    assert deltas == "I ask." and events[-1]["type"] == "response.completed"
    assert events[-1]["response"] == whole | {
        "completed_at": events[-1]["response"]["completed_at"]
    }


def test_an_answer_that_is_cut_and_an_empty_one() -> None:
    whole, events = answered("Once", "length")
    assert whole["status"] == whole["output"][0]["status"] == "incomplete"
    assert whole["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-1]["type"] == "response.incomplete"
    empty, _ = answered("\n", "stop")
    assert [item["content"][0]["text"].strip() for item in empty["output"]] == [""]
