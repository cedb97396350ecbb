"""Calls whose arguments stand between tags, one by one: GLM's and Qwen3-Coder's."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenp_edge.runtime.chat_formats.calls import Call, Tool, tool_named, typed

if TYPE_CHECKING:
    from tenp_edge.runtime.chat_formats.lark import Lark


@dataclass(frozen=True)
class TaggedCall:
    """A head with the tool's name, then its arguments. ``head`` and ``key`` are how they are
    written, with {} for the name; ``patterns`` how the head (group 1: the name) and an argument
    (groups 1, 2: key, value) are read; ``close`` ends a value, ``tail`` the call."""

    head: str
    key: str
    close: str
    tail: str
    patterns: tuple[str, str]

    def read(self, body: str, tools: Sequence[Tool]) -> list[Call]:
        head = re.match(self.patterns[0], body.strip(), re.DOTALL)
        if head is None:
            raise ValueError("it has no name")
        tool = tool_named(head[1].strip(), tools)
        pairs = re.findall(self.patterns[1], body, re.DOTALL)
        found = {key.strip(): typed(value, tool.schema_of(key.strip())) for key, value in pairs}
        return [Call(tool.name, json.dumps(found, ensure_ascii=False))]

    def write(self, lark: Lark, tool: Tool) -> str:
        """The arguments in the order of the schema; those that are not required may lack."""
        parts = [lark.text(self.head.replace("{}", tool.name))]
        for name in tool.properties:
            argument = self._argument(lark, tool, name)
            parts.append(argument if name in tool.required else f"({argument})?")
        return " ".join([*parts, lark.text(self.tail)])

    def _argument(self, lark: Lark, tool: Tool, name: str) -> str:
        schema, key = tool.schema_of(name), lark.text(self.key.replace("{}", name))
        choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
        if choices and all(isinstance(choice, str) for choice in choices):
            value = lark.any_of(lark.text(choice) for choice in choices if choice)
            return f"{key} {value} {lark.text(self.close)}"
        if schema.get("type") == "string":
            return f"{key} {lark.until(self.close)}"
        return f"{key} {lark.json(tool.within(schema))} {lark.text(self.close)}"


GLM = TaggedCall(
    "{}\n",
    "<arg_key>{}</arg_key>\n<arg_value>",
    "</arg_value>\n",
    "",
    (r"([^\s<]+)", r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>"),
)
QWEN_CODER = TaggedCall(
    "\n<function={}>\n",
    "<parameter={}>\n",
    "\n</parameter>\n",
    "</function>\n",
    (r"<function=([^>]+)>", r"<parameter=([^>]+)>\n?(.*?)\n?</parameter>"),
)
