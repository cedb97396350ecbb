"""Taking an answer apart while it is written: thoughts, text, calls."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from tenp_edge.runtime.chat_formats.calls import Tool
from tenp_edge.runtime.chat_formats.formats import (
    CHANNEL,
    MESSAGE,
    START,
    ChatFormat,
)
from tenp_edge.runtime.thinking import TAGS, Part, Thinking

_HEAD, _CONTENT, _REASONING, _SECTION, _CALL = "head", "content", "reasoning", "section", "call"
Marks = Mapping[str, dict[str, str]]


class AnswerReader:
    """Reads one answer, a piece of text after the other.

    ``thinking``: the marks of thoughts that the template writes, if it writes any. ``tools``: those
    that may be called; without any, nothing is read as a call. ``prompt``: what stands before the
    answer, which may have begun a thought.
    """

    def __init__(
        self,
        form: ChatFormat,
        thinking: Thinking | None,
        tools: Sequence[Tool] = (),
        prompt: str = "",
    ) -> None:
        thinking = thinking or TAGS
        self._form, self._tools, self._thinking = form, tools, thinking
        self._marks = _channel_marks() if form.channels else _marks(form, thinking, bool(tools))
        self._state = _HEAD if form.channels else _CONTENT
        if prompt.rstrip().endswith(thinking.opens.rstrip()):
            self._state = _REASONING
        self._held = ""  # may be the beginning of a mark
        self._space = ""  # may be white space before a mark, which belongs to nobody
        self._begun = self._state == _CONTENT
        self._body = ""
        self._calls = 0

    def feed(self, text: str) -> list[Part]:
        """What ``text``, which follows what was fed before, makes known."""
        self._held += text
        return [part for part in self._parts() if part.text or part.call]

    def finish(self) -> list[Part]:
        """What is left when the answer has ended."""
        parts = [*self._written(self._held)]
        self._held = ""
        if self._state in (_CALL, _HEAD):
            parts += self._left_call()
        elif self._state == _CONTENT and self._begun and not self._calls:
            parts.append(Part(_CONTENT, self._space))
        return [part for part in parts if part.text or part.call]

    def _parts(self) -> Iterator[Part]:
        while (found := _first(self._held, self._marks[self._state])) is not None:
            at, mark = found
            yield from self._written(self._held[:at])
            self._held = self._held[at + len(mark) :]
            yield from self._moved(mark)
        keep = begun(self._held, self._marks[self._state])
        sent = self._held[: len(self._held) - keep]
        self._held = self._held[len(sent) :]
        yield from self._written(sent)

    def _written(self, text: str) -> Iterator[Part]:
        """``text`` where it stands, without white space at either end of a part."""
        if self._state in (_CALL, _HEAD):
            self._body += text
        elif self._state != _SECTION:
            text = self._space + (text if self._begun else text.lstrip())
            kept = text.rstrip() if any(self._marks[self._state]) else text
            self._space = text[len(kept) :]
            self._begun = self._begun or bool(kept)
            if kept and self._state == _CONTENT:
                # Who has begun to answer may speak of thoughts.
                self._marks[_CONTENT].pop(self._thinking.opens.rstrip(), None)
            yield Part(self._state, kept)

    def _moved(self, mark: str) -> Iterator[Part]:
        """Past ``mark``, to what it begins."""
        target = self._marks[self._state][mark]
        if self._state == _HEAD and mark == MESSAGE:
            target = _channel(self._body)
            self._body = self._body + mark if target == _CALL else ""
        elif self._state == _CALL:
            yield from self._left_call(mark)
            self._body = ""
        else:
            self._body = mark if target == _HEAD and mark != START else ""
        self._state, self._space = target, ""
        self._begun = False

    def _left_call(self, mark: str = "") -> Iterator[Part]:
        """The calls that were written; the text itself, where it is no call."""
        body, self._body = self._body, ""
        try:
            calls = self._form.syntax.read(body, self._tools) if self._tools else []
        except (ValueError, RecursionError):
            calls = []
        if not calls and body.strip():
            opened = self._form.opens if self._state == _CALL else ""
            yield Part(_CONTENT, opened + body + mark)
        self._calls += len(calls)
        yield from (Part(_CALL, call=call) for call in calls)


def begun(text: str, marks: Mapping[str, str] | Sequence[str]) -> int:
    """How many characters at the end of ``text`` may be the beginning of one of ``marks``."""
    longest = max(map(len, marks), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return length
    return 0


def _first(text: str, marks: Mapping[str, str]) -> tuple[int, str] | None:
    """The first of ``marks`` in ``text``, the longest of those at one place, and where it is."""
    places = [(at, -len(mark), mark) for mark in marks if (at := text.find(mark)) >= 0]
    return (min(places)[0], min(places)[2]) if places else None


def _marks(form: ChatFormat, thinking: Thinking, calls: bool) -> Marks:
    """Which mark leads where, from each state."""
    content = {thinking.opens.rstrip(): _REASONING}
    reasoning = {thinking.closes: _CONTENT}
    opens, closes = form.section
    section = {form.opens: _CALL, **({closes: _CONTENT} if closes else {})}
    ends = {form.closes: _SECTION if closes else _CONTENT} if form.closes else {form.opens: _CALL}
    if calls:
        content[form.opens] = _CALL
        reasoning[form.opens] = _CALL
        if opens:
            content[opens] = reasoning[opens] = _SECTION
    return {_CONTENT: content, _REASONING: reasoning, _SECTION: section, _CALL: ends, _HEAD: {}}


def _channel_marks() -> Marks:
    """gpt-oss: <|channel|>HEAD<|message|>TEXT<|end|><|start|>assistant, and again."""
    ends = {"<|end|>": _HEAD, "<|return|>": _HEAD, CHANNEL: _HEAD, START: _HEAD, "<|call|>": _HEAD}
    return {_HEAD: {MESSAGE: _HEAD}, _CONTENT: ends, _REASONING: ends, _CALL: ends, _SECTION: {}}


def _channel(head: str) -> str:
    """What follows the head of a message."""
    if "to=functions." in head:
        return _CALL
    return _REASONING if "analysis" in head else _CONTENT
