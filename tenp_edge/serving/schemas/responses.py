"""Requests of OpenAI's Responses API, and what they are as chats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, StrictBool

from tenp_edge.serving.schemas.generation import GenerationRequest, Whole
from tenp_edge.serving.schemas.openai import ChatRequest
from tenp_edge.serving.schemas.refusing import REFUSED, Lenient
from tenp_edge.serving.schemas.wording import WrongError, check

# Where a chat's field stands in a request of this API (`refusal.Names`).
FIELDS = {
    "messages": "input",
    "max_tokens": "max_output_tokens",
    r"response_format(\.json_schema)?": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "include",
    r"(tools\[\d+\])\.function": r"\1",
}
_TEXTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_LOGPROBS = "message.output_text.logprobs"
# What asks the server to remember: it forgets every answer.
_REMEMBERED = dict.fromkeys(
    ("previous_response_id", "conversation", "prompt", "background"),
    "this server remembers no answers; send all of it as input",
)


class ContentPart(Lenient):
    """Part of an item."""

    type: str
    text: str | None = None
    refusal: str | None = None


Content = str | list[ContentPart]


class InputItem(Lenient):
    """A message, or another thing that was said or done before."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: Content | None = Field(None, description="text, or a list of parts")
    summary: list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: Content | None = None


class TextFormat(Lenient):
    """The form of the text."""

    type: str = "text"
    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: StrictBool | None = None


class TextOptions(Lenient):
    """How the text is written."""

    format: TextFormat | None = None


class ReasoningOptions(Lenient):
    """How much is thought first."""

    effort: str | None = None


class ResponsesRequest(GenerationRequest):
    """/v1/responses."""

    refused: ClassVar[Mapping[str, str]] = {**REFUSED, **_REMEMBERED}

    input: str | list[InputItem] = Field(min_length=1, description="text, or a list of items")
    instructions: str | None = None
    max_output_tokens: Whole | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    include: list[str] | None = None
    top_logprobs: Whole | None = None
    metadata: dict[str, Any] | None = None

    def openai(self) -> ChatRequest:
        """The same request as a chat. Raises WrongError and RefusalError for what is none."""
        return check(ChatRequest, self._shared() | self._fields())

    def echoed(self) -> dict[str, Any]:
        """What an answer repeats of its request."""
        text_format = (
            self.text.format if self.text and self.text.format else TextFormat(schema=None)
        )
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": self.reasoning and self.reasoning.effort, "summary": None},
            "store": False,
            "temperature": self.temperature,
            "text": {"format": text_format.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": self.tool_choice or "auto",
            "tools": self.tools or [],
            "top_p": self.top_p,
            "truncation": "disabled",
        }

    def _shared(self) -> dict[str, Any]:
        """The samplers' fields, which both kinds of requests have."""
        names = GenerationRequest.model_fields.keys() - {"n"}
        return {name: getattr(self, name) for name in names}

    def _fields(self) -> dict[str, Any]:
        told = self.top_logprobs is not None or _LOGPROBS in (self.include or [])
        fields: dict[str, Any] = {
            "messages": list(self._messages()),
            "tools": [_tool(tool) for tool in self.tools or []],
            "tool_choice": _choice(self.tool_choice),
            "parallel_tool_calls": self.parallel_tool_calls,
            "logprobs": told,
            "top_logprobs": self.top_logprobs,
            "reasoning_effort": self.reasoning and self.reasoning.effort,
        }
        if self.max_output_tokens is not None:
            fields["max_tokens"] = self.max_output_tokens
        if self.text is not None and self.text.format is not None:
            fields["response_format"] = _format(self.text.format)
        return fields

    def _messages(self) -> Iterator[dict[str, Any]]:
        if self.instructions:
            yield {"role": "system", "content": self.instructions}
        items = self.input
        if isinstance(items, str):
            yield {"role": "user", "content": items}
            return
        said: dict[str, Any] = {}  # the model's message in the making
        for item in items:
            if said and not _goes_on(said, item):
                yield said
                said = {}
            if item.type == "function_call_output":
                result = {"role": "tool", "tool_call_id": item.call_id}
                yield {**result, "content": _text(item.output)}
            elif item.type == "message" and item.role != "assistant":
                yield {"role": item.role or "user", "content": _text(item.content)}
            else:
                said = {"role": "assistant", **said, **_said(said, item)}
        if said:
            yield said


def _goes_on(said: Mapping[str, Any], item: InputItem) -> bool:
    """Whether ``item`` belongs to the message ``said``: calls do, and a text after thoughts."""
    if item.type == "function_call":
        return True
    only_thought = said.keys() <= {"role", "reasoning_content"}
    return item.type == "message" and item.role == "assistant" and only_thought


def _said(said: Mapping[str, Any], item: InputItem) -> dict[str, Any]:
    """What ``item`` adds to the model's message."""
    match item.type:
        case "message":
            return {"content": _text(item.content)}
        case "reasoning":
            return {"reasoning_content": _text(item.content or item.summary)}
        case "function_call":
            function = {"name": item.name or "", "arguments": item.arguments or "{}"}
            call = {"id": item.call_id, "function": function}
            return {"tool_calls": [*said.get("tool_calls", []), call]}
        case kind:
            raise WrongError("input", f"an item of type '{kind}': this server cannot read it")


def _text(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.type not in _TEXTS and part.refusal is None:
            raise WrongError(
                "input", f"an item has a part of type '{part.type}': text alone is read"
            )
    return "".join(part.text or part.refusal or "" for part in content)


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A tool as chats have it: a function within."""
    if tool.get("type", "function") != "function":
        return {"type": tool["type"]}  # refused as every other kind is
    return {"function": {key: value for key, value in tool.items() if key != "type"}}


def _choice(choice: str | Mapping[str, Any] | None) -> Any:
    if not isinstance(choice, Mapping):
        return choice
    if choice.get("type") == "allowed_tools":
        tools = choice.get("tools")
        if not isinstance(tools, list):
            raise WrongError(
                "tool_choice", "tool_choice of type 'allowed_tools' needs tools, a list"
            )
        tools = [_tool(tool) if isinstance(tool, Mapping) else tool for tool in tools]
        allowed = {"mode": choice.get("mode", "auto"), "tools": tools}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    return _tool(choice)


def _format(form: TextFormat) -> dict[str, Any]:
    schema = {"name": form.name, "schema": form.schema_, "strict": form.strict}
    return {"type": form.type} | ({"json_schema": schema} if form.type == "json_schema" else {})
