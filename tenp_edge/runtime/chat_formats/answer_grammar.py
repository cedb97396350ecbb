"""Grammars of whole answers: thoughts, then calls, or text of an asked form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tenp_edge.runtime.chat_formats.calls import Tool
from tenp_edge.runtime.chat_formats.formats import ChatFormat
from tenp_edge.runtime.chat_formats.lark import Lark
from tenp_edge.runtime.grammars import GrammarSource, definition
from tenp_edge.runtime.thinking import Thinking


class AnswerGrammar:
    """What answers in one format may be. ``prompt``: what stands before the answer; ``control``:
    marks that are control tokens, and their numbers."""

    def __init__(
        self,
        form: ChatFormat,
        thinking: Thinking | None,
        prompt: str,
        control: Mapping[str, int],
    ) -> None:
        self._form, self._thinking, self._prompt = form, thinking, prompt
        self._control = control

    def calls(self, tools: Sequence[Tool], parallel: bool) -> GrammarSource:
        """One call of ``tools``, or more."""
        lark = self._lark(tools)
        calls = self._calls(lark, tools, parallel)
        return GrammarSource("lark", lark.grammar(f"{self._thoughts(lark)} {calls}"))

    def text(
        self, source: GrammarSource, tools: Sequence[Tool] = (), parallel: bool = True
    ) -> GrammarSource:
        """Text that follows ``source``; or calls of ``tools``."""
        lark = self._lark(tools)
        answer = f"{lark.text(self._form.final)} @answer"
        if tools:
            answer = lark.any_of([answer, self._calls(lark, tools, parallel)])
        start = lark.grammar(f"{self._thoughts(lark)} {answer}")
        inner = _grammar(definition(source))
        grammars = [{"lark_grammar": start}, {**inner, "name": "answer"}]
        return GrammarSource("llguidance", json.dumps({"grammars": grammars}))

    def _lark(self, tools: Sequence[Tool]) -> Lark:
        return Lark(self._control, strict=any(tool.strict for tool in tools))

    def _thoughts(self, lark: Lark) -> str:
        """Where the prompt has begun a thought, its rest; else a thought that may lack."""
        thinking = self._thinking
        if thinking is None:
            return ""
        rest = f"{lark.until(thinking.closes)} /\\s*/"
        if self._prompt.rstrip().endswith(thinking.opens.rstrip()):
            return rest
        return f"({lark.text(thinking.opens.rstrip())} {rest})?"

    def _calls(self, lark: Lark, tools: Sequence[Tool], parallel: bool) -> str:
        form = self._form
        one = lark.any_of(self._call(lark, tool) for tool in tools)
        before, after = (lark.text(mark) for mark in form.section)
        more = f"({lark.text(form.between)} {one})*" if parallel and not form.single else ""
        return f"{before} {one} {more} {after}"

    def _call(self, lark: Lark, tool: Tool) -> str:
        form = self._form
        body = form.syntax.write(lark, tool)
        return f"{lark.text(form.opens)} {body} {lark.text(form.closes)}"


def _grammar(text: str) -> dict[str, Any]:
    """llguidance's JSON of one grammar, which it leaves as it is where it is Lark."""
    if not text.startswith("{"):
        return {"lark_grammar": text}
    found: dict[str, Any] = json.loads(text)["grammars"][0]
    return found
