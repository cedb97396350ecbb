"""Gemma 4's calls: call:get_weather{city:<|"|>Oslo<|"|>,days:3}."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tenp_edge.runtime.chat_formats.calls import Call, Tool

if TYPE_CHECKING:
    from tenp_edge.runtime.chat_formats.lark import Lark

QUOTE = '<|"|>'
_HEAD = re.compile(r"\s*call:([^\s{]+)\s*(?=\{)")
_KEY = re.compile(r'\s*(?:<\|"\|>)?([^:{}",<]+?)(?:<\|"\|>)?\s*:')
_PLAIN = re.compile(r"[^,{}\[\]]+")
_DEEPEST = 64


class GemmaCall:
    """Keys without quotes, texts between marks of their own."""

    def read(self, body: str, tools: Sequence[Tool]) -> list[Call]:
        head = _HEAD.match(body)
        if head is None:
            raise ValueError("it has no name")
        found, _ = _object(body, head.end(), 0)
        return [Call(head[1], json.dumps(found, ensure_ascii=False))]

    def write(self, lark: Lark, tool: Tool) -> str:
        value = _object_rule(lark, tool, tool.parameters)
        return f"{lark.text(f'call:{tool.name}')} {value}"


def _object_rule(lark: Lark, tool: Tool, schema: Mapping[str, Any]) -> str:
    """The properties that are required, in the order of the schema, then others."""
    properties, required = schema.get("properties") or {}, schema.get("required") or []
    pairs = {
        name: f"{lark.text(f'{name}:')} {_rule(lark, tool, inner)}"
        for name, inner in properties.items()
    }
    first = [pairs[name] for name in pairs if name in required]
    others = [pairs[name] for name in pairs if name not in required]
    return f"{lark.text('{')} {lark.listed(first, others, ',')} {lark.text('}')}"


def _rule(lark: Lark, tool: Tool, schema: Any) -> str:
    schema = schema if isinstance(schema, Mapping) else {}  # true is a schema too
    choices = schema.get("enum", [schema["const"]] if "const" in schema else [])
    if choices and all(isinstance(choice, str) for choice in choices):
        return lark.any_of(lark.text(f"{QUOTE}{choice}{QUOTE}") for choice in choices)
    kind = schema.get("type")
    if kind == "string":
        return f"{lark.text(QUOTE)} {lark.until(QUOTE)}"
    if kind == "object" and schema.get("properties"):
        return _object_rule(lark, tool, schema)
    if kind == "array":
        item = _rule(lark, tool, schema.get("items") or {})
        many = f"({item} ({lark.text(',')} {item})*)?"
        return f"{lark.text('[')} {many} {lark.text(']')}"
    return lark.json(tool.within(schema or {"type": "number"}))


# -- reading: each returns the value and where it ends ---------------------------------------------


def _object(text: str, at: int, depth: int) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    at += 1
    while not text.startswith("}", at):
        key = _KEY.match(text, at)
        if key is None:
            raise ValueError("a key is missing")
        found[key[1]], at = _value(text, key.end(), depth + 1)
        at = _next(text, at, "}")
    return found, at + 1


def _list(text: str, at: int, depth: int) -> tuple[list[Any], int]:
    found = []
    at += 1
    while not text.startswith("]", at):
        value, at = _value(text, at, depth + 1)
        found.append(value)
        at = _next(text, at, "]")
    return found, at + 1


def _next(text: str, at: int, end: str) -> int:
    """Past a comma, or at ``end``."""
    if text.startswith(",", at):
        return at + 1
    if not text.startswith(end, at):
        raise ValueError("it does not end")
    return at


def _value(text: str, at: int, depth: int) -> tuple[Any, int]:
    if depth > _DEEPEST:
        raise ValueError("it is nested too deep")
    if text.startswith(QUOTE, at):
        end = text.index(QUOTE, at + len(QUOTE))
        return text[at + len(QUOTE) : end], end + len(QUOTE)
    if text.startswith("{", at):
        return _object(text, at, depth)
    if text.startswith("[", at):
        return _list(text, at, depth)
    plain = _PLAIN.match(text, at)
    if plain is None:
        raise ValueError("a value is missing")
    return json.loads(plain[0].strip()), plain.end()
