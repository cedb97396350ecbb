"""Calls as Python writes them: LFM2's [get_weather(city="Oslo"), now()]."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tenp_edge.runtime.chat_formats.calls import Call, Tool

if TYPE_CHECKING:
    from tenp_edge.runtime.chat_formats.lark import Lark

# JSON's spelling is as good as Python's.
_NAMES = {"true": True, "false": False, "null": None}
_MOST_CHARACTERS = 2**16


class PythonCall:
    """A list of calls with keyword arguments."""

    def read(self, body: str, tools: Sequence[Tool]) -> list[Call]:
        if len(body) > _MOST_CHARACTERS:
            raise ValueError("it is too long")
        try:
            tree = ast.parse(body.strip(), mode="eval").body
            nodes = tree.elts if isinstance(tree, ast.List) else [tree]
            return [_call(node) for node in nodes]
        except (SyntaxError, RecursionError, MemoryError):
            raise ValueError("it is no Python") from None

    def write(self, lark: Lark, tool: Tool) -> str:
        """Required arguments first, in the order of the schema."""
        written = {name: _argument(lark, tool, name) for name in tool.properties}
        first = [written[name] for name in written if name in tool.required]
        others = [written[name] for name in written if name not in tool.required]
        arguments = lark.listed(first, others, ", ")
        return f"{lark.text(f'[{tool.name}(')} {arguments} {lark.text(')]')}"


def _argument(lark: Lark, tool: Tool, name: str) -> str:
    return f"{lark.text(f'{name}=')} {lark.json(tool.within(tool.schema_of(name)))}"


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("it is no call with named arguments")
    found = {str(pair.arg): _value(pair.value) for pair in node.keywords}
    return Call(ast.unparse(node.func), json.dumps(found, ensure_ascii=False))


def _value(node: ast.expr) -> Any:
    """A literal, in Python's spelling or in JSON's."""
    match node:
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_value(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {str(_value(key)): _value(value) for key, value in pairs if key is not None}
        case _:
            value = ast.literal_eval(node)
            json.dumps(value)  # no sets, bytes or complex numbers
            return value
