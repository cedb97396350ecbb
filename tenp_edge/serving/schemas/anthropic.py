"""Anthropic's messages, and what they are as OpenAI's."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import Field, StrictBool

from tenp_edge.serving.schemas.generation import Whole
from tenp_edge.serving.schemas.openai import ChatRequest
from tenp_edge.serving.schemas.refusing import Asked, Lenient
from tenp_edge.serving.schemas.wording import WrongError, check

# Where a chat's field stands in a request of this API (`refusal.Names`).
FIELDS = {
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    r"(tools\[\d+\])\.function\.parameters": r"\1.input_schema",
    r"(tools\[\d+\])\.function": r"\1",
}
_IGNORED_BLOCKS = ("redacted_thinking",)


class Block(Lenient):
    """Part of a message."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None


class AnthropicMessage(Lenient):
    """One message."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block] = Field(description="text, or a list of blocks")


class AnthropicTool(Lenient):
    """A tool; those of Anthropic's own servers have a type."""

    type: str = "custom"
    name: str = ""
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class AnthropicToolChoice(Lenient):
    """Whether a tool is to be called, and which."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: StrictBool | None = None


class OutputConfig(Lenient):
    """How the text is written: as JSON of a schema."""

    format: dict[str, Any] | None = None


class CountRequest(Asked):
    """/v1/messages/count_tokens, and what /v1/messages shares with it."""

    model: str | None = None
    messages: list[AnthropicMessage] = Field(min_length=1)
    system: str | list[Block] | None = Field(None, description="text, or a list of blocks")
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = Field(None, description="an object: type and schema")

    def openai(self) -> ChatRequest:
        """The same request in OpenAI's words. Raises RefusalError for what has none."""
        return check(ChatRequest, self._fields())

    def _fields(self) -> dict[str, Any]:
        messages = [part for message in self.messages for part in _messages(message)]
        system = _text(self.system)
        if system:
            messages.insert(0, {"role": "system", "content": system})
        fields: dict[str, Any] = {"model": self.model, "messages": messages}
        fields["tools"] = [_tool(tool) for tool in self.tools or []]
        if self.tool_choice is not None:
            fields |= _choice(self.tool_choice)
        if self.thinking is not None and self.thinking.get("type") in ("enabled", "disabled"):
            thinks = self.thinking["type"] == "enabled"
            fields["chat_template_kwargs"] = {"enable_thinking": thinks}
        form = (self.output_config and self.output_config.format) or self.output_format
        return fields | ({"response_format": form} if form else {})


class MessagesRequest(CountRequest):
    """/v1/messages."""

    max_tokens: Whole | None = None
    stop_sequences: list[str] | None = None
    stream: StrictBool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Whole | None = None

    def _fields(self) -> dict[str, Any]:
        names = ("max_tokens", "temperature", "top_p", "top_k", "stream")
        stated = {name: getattr(self, name) for name in names}
        return super()._fields() | stated | {"stop": self.stop_sequences}


def _tool(tool: AnthropicTool) -> dict[str, Any]:
    if tool.type != "custom":
        return {"type": tool.type}  # refused as every other kind is
    function = {"name": tool.name, "description": tool.description}
    return {"function": function | {"parameters": tool.input_schema}}


def _choice(choice: AnthropicToolChoice) -> dict[str, Any]:
    named = {"type": "function", "function": {"name": choice.name or ""}}
    spelled = {"auto": "auto", "any": "required", "none": "none", "tool": named}[choice.type]
    return {
        "tool_choice": spelled,
        "parallel_tool_calls": False if choice.disable_parallel_tool_use else None,
    }


def _messages(message: AnthropicMessage) -> list[dict[str, Any]]:
    """A message as OpenAI's: results of tools are messages of their own."""
    if isinstance(message.content, str):
        return [{"role": message.role, "content": message.content}]
    found: list[dict[str, Any]] = []
    said: dict[str, Any] = {"role": message.role, "content": ""}
    for block in message.content:
        match block.type:
            case "text":
                said["content"] += block.text or ""
            case "thinking":
                said["reasoning_content"] = said.get("reasoning_content", "") + (
                    block.thinking or ""
                )
            case "tool_use":
                function = {"name": block.name or "", "arguments": json.dumps(block.input or {})}
                said.setdefault("tool_calls", []).append({"id": block.id, "function": function})
            case "tool_result":
                result = {"role": "tool", "tool_call_id": block.tool_use_id}
                found.append({**result, "content": _text(block.content)})
            case kind if kind not in _IGNORED_BLOCKS:
                raise WrongError(
                    "messages", f"a message has a block of type '{kind}': text alone is read"
                )
    return [*found, said] if said["content"] or "tool_calls" in said else found


def _text(content: str | list[Block] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if any(block.text is None for block in content):
        raise WrongError("messages", "a message has a block that is no text: text alone is read")
    return "".join(block.text or "" for block in content)
