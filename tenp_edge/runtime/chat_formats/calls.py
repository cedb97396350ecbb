"""Tools, calls of them, and what a way to write calls must be able to do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from tenp_edge.runtime.chat_formats.lark import Lark

Schema = Mapping[str, Any]


@dataclass(frozen=True)
class Tool:
    """A function that the model may call; ``parameters`` is the JSON schema of its arguments, which
    forced calls follow to the letter where it is ``strict``."""

    name: str
    parameters: Schema
    description: str = ""
    strict: bool = False

    def described(self) -> dict[str, Any]:
        """As chat templates know it."""
        function = {"name": self.name, "description": self.description}
        return {"type": "function", "function": function | {"parameters": dict(self.parameters)}}

    def schema_of(self, parameter: str) -> Schema:
        """The schema of one argument; an empty one where nothing is said."""
        found = self.properties.get(parameter)
        return found if isinstance(found, Mapping) else {}

    @property
    def properties(self) -> Schema:
        found = self.parameters.get("properties")
        return found if isinstance(found, Mapping) else {}

    @property
    def required(self) -> Sequence[str]:
        found = self.parameters.get("required")
        return found if isinstance(found, list) else []

    @property
    def arguments(self) -> dict[str, Any]:
        """`parameters` without arguments that it does not name, unless it says that they may be."""
        schema = {"type": "object", **self.parameters}
        return (
            schema if "additionalProperties" in schema else schema | {"additionalProperties": False}
        )

    def within(self, schema: Schema) -> dict[str, Any]:
        """``schema`` with the definitions that its references mean."""
        names = [name for name in ("$defs", "definitions") if name in self.parameters]
        return {**schema, **{name: self.parameters[name] for name in names}}


@dataclass(frozen=True)
class Call:
    """What the model calls; ``arguments`` is JSON, ``identity`` what it calls this call, if it
    does."""

    name: str
    arguments: str
    identity: str | None = None


class CallSyntax(Protocol):
    """How the calls between two marks are written."""

    def read(self, body: str, tools: Sequence[Tool]) -> list[Call]:
        """The calls in ``body``. Raises ValueError where it holds none."""

    def write(self, lark: Lark, tool: Tool) -> str:
        """A Lark expression of every body that is a valid call of ``tool``."""


def arguments_text(value: Any) -> str:
    """The arguments of a call as JSON; models also write the JSON as a string."""
    if isinstance(value, str):
        value = json.loads(value, strict=False)
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ValueError("the arguments are no object")
    return json.dumps(value, ensure_ascii=False)


def tool_named(name: str, tools: Sequence[Tool]) -> Tool:
    """The tool of that name; one without known arguments where there is none."""
    return next((tool for tool in tools if tool.name == name), Tool(name, {}))


def typed(text: str, schema: Schema) -> Any:
    """An argument that is written without quotes: a text where the schema asks for one, else the
    JSON that it is, if it is any."""
    if schema.get("type") == "string":
        return text
    try:
        return json.loads(text, strict=False)
    except ValueError:
        return text
