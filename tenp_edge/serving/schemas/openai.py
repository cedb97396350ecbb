"""OpenAI's requests: completions and chats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, StrictBool, field_validator, model_validator

from tenp_edge.runtime.chat_formats.calls import Tool
from tenp_edge.runtime.grammars import GrammarSource
from tenp_edge.serving.schemas.generation import (
    GenerationRequest,
    Whole,
    check_count,
    grammar_of,
)
from tenp_edge.serving.schemas.refusing import Lenient
from tenp_edge.serving.schemas.wording import WrongError

_DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's, for /v1/completions alone.
_MOST_LOGPROBS = 20
_MOST_TOOLS = 128
_PROMPTS = "text, a list of token numbers, or a list of these"
Prompt = str | list[int]


class CompletionRequest(GenerationRequest):
    """/v1/completions."""

    prompt: str | list[int] | list[str | list[int]] = Field(description=_PROMPTS)
    best_of: Whole | None = None
    echo: StrictBool | None = None
    logprobs: Whole | StrictBool | None = Field(
        None, description=f"a whole number up to {_MOST_LOGPROBS}", le=_MOST_LOGPROBS, ge=0
    )
    suffix: str | None = None

    @model_validator(mode="after")
    def _possible(self) -> CompletionRequest:
        if self.suffix:
            raise WrongError(
                "suffix", "suffix needs a model that fills gaps, and this one continues text"
            )
        if (self.best_of or 1) > (self.n or 1):
            raise WrongError(
                "best_of", "best_of is more than n: this server returns all that it generates"
            )
        if not self.prompt:
            raise WrongError("prompt", "the prompt is empty")
        check_count(self.prompts())
        return self

    def prompts(self) -> list[Prompt]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [[part for part in self.prompt if isinstance(part, int)]]
        return list(self.prompt)

    def wanted_tokens(self) -> int | None:
        return _DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else super().wanted_tokens()

    @property
    def told(self) -> int | None:
        """How many log probabilities are told beside the chosen token's."""
        return None if self.logprobs is None or self.logprobs is False else int(self.logprobs)


class Part(Lenient):
    """Part of a message."""

    type: str
    text: str | None = None


class CalledFunction(Lenient):
    """What an earlier answer called."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(Lenient):
    """A call in an earlier answer."""

    id: str | None = None
    function: CalledFunction

    def plain(self) -> dict[str, Any]:
        arguments = self.function.arguments
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        function = {"name": self.function.name, "arguments": text}
        return {"id": self.id or "", "type": "function", "function": function}


class Message(Lenient):
    """One message; what a client sends back of an earlier answer is accepted."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[str | Part] | None = Field(None, description="text, or a list of parts")
    tool_calls: list[ToolCall] | None = None
    function_call: CalledFunction | None = Field(None, description="an object with name and text")
    audio: Any = None
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str | None = None

    @field_validator("audio")
    @classmethod
    def _silent(cls, value: Any) -> None:
        if value is not None:
            raise WrongError("messages", "a message has audio: text alone is read")

    @field_validator("content")
    @classmethod
    def _texts(cls, value: Any) -> Any:
        for part in value if isinstance(value, list) else []:
            if isinstance(part, Part) and part.text is None:
                raise WrongError(
                    "messages", f"a message has a part of type '{part.type}': text alone is read"
                )
        return value

    def text(self) -> str:
        parts = [self.content] if isinstance(self.content, str) else self.content or []
        return "".join(part if isinstance(part, str) else part.text or "" for part in parts)

    def plain(self) -> dict[str, Any]:
        """As chat templates know it."""
        roles = {"developer": "system", "function": "tool"}
        message: dict[str, Any] = {"role": roles.get(self.role, self.role), "content": self.text()}
        if calls := self._calls():
            message["tool_calls"] = [call.plain() for call in calls]
        stated = {
            "tool_call_id": self.tool_call_id,
            "name": self.name,
            "reasoning_content": self.reasoning_content,
        }
        return message | {key: value for key, value in stated.items() if value}

    def _calls(self) -> list[ToolCall]:
        """What was called, also in the field that tool_calls replaced."""
        old = [] if self.function_call is None else [ToolCall(function=self.function_call)]
        return self.tool_calls or old


class FunctionFields(Lenient):
    """A function that may be called."""

    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class ToolFields(Lenient):
    """A tool; functions are the only kind."""

    type: str = "function"
    function: FunctionFields | None = None

    @model_validator(mode="after")
    def _known(self) -> ToolFields:
        if self.type != "function":
            raise WrongError("tools", f"a tool of type '{self.type}': functions are the only kind")
        if self.function is None:
            raise WrongError("tools", "a tool of type 'function' needs function")
        return self

    @property
    def name(self) -> str:
        return "" if self.function is None else self.function.name

    def tool(self) -> Tool:
        function = self.function
        assert function is not None
        return Tool(
            function.name,
            function.parameters or {},
            function.description or "",
            bool(function.strict),
        )


class NamedFunction(Lenient):
    """The name of a function."""

    name: str


class ToolChoice(Lenient):
    """The one tool that is to be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class NamedTool(Lenient):
    """One of the tools that may be called."""

    function: NamedFunction


class AllowedTools(Lenient):
    """Some of the tools, and whether one of them must be called."""

    mode: Literal["auto", "required"] = "auto"
    tools: list[NamedTool]


class AllowedChoice(Lenient):
    """Some tools of all."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class JsonSchema(Lenient):
    """A schema, and the name that it goes by."""

    name: str | None = None
    schema_: dict[str, Any] | StrictBool = Field(alias="schema")
    strict: StrictBool | None = None


class ResponseFormat(Lenient):
    """The form of the text."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | StrictBool | None = Field(None, alias="schema")
    pattern: str | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> ResponseFormat:
        if self.json_schema is None and self.schema_ is not None:
            self.json_schema = JsonSchema(schema=self.schema_)  # llama-server's shorter form
        needed = {"json_schema": self.json_schema, "regex": self.pattern, "grammar": self.grammar}
        if self.type in needed and needed[self.type] is None:
            field = "pattern" if self.type == "regex" else self.type
            raise WrongError(
                "response_format", f"response_format of type '{self.type}' needs {field}"
            )
        return self

    def source(self) -> GrammarSource | None:
        match self.type:
            case "json_object":
                return GrammarSource.schema(self.schema_ or {"type": "object"})
            case "json_schema":
                assert self.json_schema is not None
                schema = self.json_schema
                return GrammarSource.schema(schema.schema_, bool(schema.strict))
            case "regex":
                return GrammarSource("regex", self.pattern or "")
            case "grammar":
                return grammar_of(self.grammar or "")
            case _:
                return None


class ChatRequest(GenerationRequest):
    """/v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    logprobs: StrictBool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=_MOST_LOGPROBS)
    tools: list[ToolFields] | None = Field(None, max_length=_MOST_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | AllowedChoice | None = Field(
        None, description="none, auto, required, or an object that names a function"
    )
    parallel_tool_calls: StrictBool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _possible(self) -> ChatRequest:
        known = [tool.name for tool in self.tools or []]
        for name in self._named() or ():
            if name not in known:
                raise WrongError("tool_choice", f"tool_choice names '{name}', no tool")
        if self.tool_choice == "required" and not known:
            raise WrongError("tool_choice", "tool_choice is 'required', and there are no tools")
        if self.top_logprobs and not self.logprobs:
            raise WrongError("top_logprobs", "top_logprobs needs logprobs: true")
        return self

    def usable_tools(self) -> Sequence[Tool]:
        """The tools that may be called now."""
        named = self._named()
        tools = [] if self.tool_choice == "none" else self.tools or []
        return [tool.tool() for tool in tools if named is None or tool.name in named]

    def _named(self) -> Sequence[str] | None:
        """The tools that ``tool_choice`` names; None where it names none."""
        match self.tool_choice:
            case ToolChoice(function=function):
                return [function.name]
            case AllowedChoice(allowed_tools=allowed):
                return [tool.function.name for tool in allowed.tools]
            case _:
                return None

    @property
    def must_call(self) -> bool:
        match self.tool_choice:
            case AllowedChoice(allowed_tools=allowed):
                return allowed.mode == "required"
            case choice:
                return choice == "required" or isinstance(choice, ToolChoice)

    def grammar_source(self) -> GrammarSource | None:
        stated = None if self.response_format is None else self.response_format.source()
        return stated or super().grammar_source()

    def variables(self) -> dict[str, Any]:
        """What the chat template is told beside the messages."""
        stated = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort == "none":  # in the words that templates have for it
            stated = {"enable_thinking": False, "thinking": False} | stated
        elif self.reasoning_effort:
            stated.setdefault("reasoning_effort", self.reasoning_effort)
        return stated

    @property
    def told(self) -> int | None:
        """How many log probabilities are told beside the chosen token's."""
        return (self.top_logprobs or 0) if self.logprobs else None
