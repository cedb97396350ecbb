"""Calls whose arguments are JSON: Hermes' objects, Mistral's lists, and a head before JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenp_edge.runtime.chat_formats.calls import Call, Tool, arguments_text

if TYPE_CHECKING:
    from tenp_edge.runtime.chat_formats.lark import Lark


@dataclass(frozen=True)
class JsonCall:
    """{"name": ..., "arguments": {...}}; ``listed``: in a list, as Mistral's are. ``around``: what
    stands before and after it."""

    around: tuple[str, str] = ("\n", "\n")
    listed: bool = False

    def read(self, body: str, tools: Sequence[Tool]) -> list[Call]:
        found = json.loads(body, strict=False)
        return [_call(entry) for entry in (found if isinstance(found, list) else [found])]

    def write(self, lark: Lark, tool: Tool) -> str:
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": tool.arguments},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        if self.listed:
            schema = {"type": "array", "prefixItems": [schema], "items": False, "minItems": 1}
        before, after = (lark.text(text) for text in self.around)
        return f"{before} {lark.json(tool.within(schema))} {after}"


def _call(entry: Any) -> Call:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise ValueError("it has no name")
    arguments = entry.get("arguments", entry.get("parameters"))
    identity = entry.get("id")
    return Call(
        entry["name"],
        arguments_text(arguments),
        identity if isinstance(identity, str) else None,
    )


@dataclass(frozen=True)
class HeadedCall:
    """A head that names the tool, and JSON. ``head`` is how it is written, with {} for the name;
    ``pattern`` how it is read, with the groups name and arguments, and perhaps id; ``tail`` is
    written after the JSON."""

    head: str
    pattern: str
    tail: str = ""

    def read(self, body: str, tools: Sequence[Tool]) -> list[Call]:
        match = re.fullmatch(self.pattern, body.strip(), re.DOTALL)
        if match is None:
            raise ValueError("it has no head")
        found = match.groupdict()
        return [Call(found["name"], arguments_text(found["arguments"] or "{}"), found.get("id"))]

    def write(self, lark: Lark, tool: Tool) -> str:
        head, tail = lark.text(self.head.replace("{}", tool.name)), lark.text(self.tail)
        return f"{head} {lark.json(tool.arguments)} {tail}"


@dataclass(frozen=True)
class MistralCall:
    """Mistral's two: a list of objects, and name[ARGS]{...}; ``named`` is which one is written."""

    named: bool

    def read(self, body: str, tools: Sequence[Tool]) -> list[Call]:
        if body.lstrip().startswith(("[", "{")):
            return JsonCall().read(body, tools)
        return _NAMED.read(body, tools)

    def write(self, lark: Lark, tool: Tool) -> str:
        syntax = _NAMED if self.named else JsonCall((" ", ""), listed=True)
        return syntax.write(lark, tool)


_NAMED = HeadedCall(
    "{}[ARGS]",
    r"(?P<name>[\w.-]+)(?:\[CALL_ID\](?P<id>\w+))?(?:\[ARGS\])?\s*(?P<arguments>\{.*\})?",
)
