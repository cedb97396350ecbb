"""Writing a grammar in Lark, in which control tokens are tokens and everything else is text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tenp_edge.runtime.grammars import LENIENT, SPACES


class Lark:
    """Rules in the making. ``control``: marks that are control tokens, and their numbers: no text
    can spell them. ``strict``: schemas are followed to the letter, or refused."""

    def __init__(self, control: Mapping[str, int], strict: bool = False) -> None:
        self._control = control
        self._guidance = SPACES if strict else SPACES | LENIENT
        self._rules: list[str] = []
        marks = sorted(map(re.escape, control), key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(marks)})") if marks else None

    def text(self, text: str) -> str:
        """Exactly ``text``."""
        parts = self._split.split(text) if self._split else [text]
        return " ".join(self._part(part) for part in parts if part)

    def json(self, schema: Mapping[str, Any]) -> str:
        """JSON that is valid under ``schema``."""
        return self.rule(f"%json {json.dumps({'x-guidance': self._guidance, **schema})}")

    def until(self, mark: str) -> str:
        """Any text, up to ``mark`` and with it."""
        if mark in self._control:
            return f"/(?s:.*)/ {self.text(mark)}"
        return self.rule("/(?s:.*)/", f"[suffix={json.dumps(mark)}]")

    def any_of(self, expressions: Iterable[str]) -> str:
        return self.rule("\n  | ".join(expressions))

    def listed(self, required: Sequence[str], optional: Sequence[str], separator: str) -> str:
        """Expressions between separators: first the required ones, then others that may lack."""
        first, others = (required, optional) if required else (optional[:1], optional[1:])
        between = self.text(separator)
        parts = [f" {between} ".join(first), *(f"({between} {other})?" for other in others)]
        together = " ".join(filter(None, parts))
        return together if required or not together else f"({together})?"

    def rule(self, expression: str, attributes: str = "") -> str:
        """``expression`` under a name, which is the result."""
        name = f"r{len(self._rules)}"
        self._rules.append(f"{name}{attributes}: {expression}")
        return name

    def grammar(self, start: str) -> str:
        """Everything, beginning with ``start``."""
        return "\n".join([f"start: {start}", *self._rules])

    def _part(self, text: str) -> str:
        number = self._control.get(text)
        return json.dumps(text, ensure_ascii=False) if number is None else f"<[{number}]>"
