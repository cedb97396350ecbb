"""Telling what a model thinks from what it answers, by the markers of its chat template."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tenp_edge.runtime.generation import Piece


@dataclass(frozen=True)
class Markers:
    """``opened`` and ``closed`` enclose what is thought; a template that uses them has ``sign``.

    ``between``: what separates the messages of one answer and is nobody's to read. Where there is
    such, thinking may begin anywhere; else at the start of the answer alone, so that an answer may
    speak of its own markers.
    """

    sign: str
    opened: str
    closed: str
    between: tuple[str, ...] = ()


# Also for templates that name none: many models were trained to think after these.
TAGS = Markers("</think>", "<think>", "</think>")
# The first that fits counts.
MARKERS = (
    Markers("<channel|>", "<|channel>thought\n", "<channel|>"),  # Gemma 4
    TAGS,
    Markers("[/THINK]", "[THINK]", "[/THINK]"),
    Markers("◁/think▷", "◁think▷", "◁/think▷"),  # Kimi-VL
    Markers(  # OpenAI's harmony format, of gpt-oss
        "<|channel|>",
        "<|channel|>analysis<|message|>",
        "<|end|>",
        (
            "<|start|>assistant",
            "<|channel|>final<|message|>",
            "<|channel|>commentary<|message|>",
        ),
    ),
)
# What templates call the thinking of a message that was said before.
_FIELD = re.compile(r"""(?:\.|\[['"])(reasoning_content|thinking|reasoning)\b""")
# What they ask, to know whether the model is to think.
_SWITCH = re.compile(r"\b(enable_thinking|thinking)\b(?! *\()")


@dataclass(frozen=True)
class Part:
    """A stretch of what was generated: thought, or said."""

    text: str
    thinking: bool = False


@dataclass(frozen=True)
class Spoken:
    """One generated token, and the parts of the answer that it completes."""

    piece: Piece
    parts: Sequence[Part]


@dataclass(frozen=True)
class Reply:
    """An answer to a prompt of ``prompt_tokens``; it is generated while ``spoken`` is read."""

    prompt_tokens: int
    spoken: Generator[Spoken, None, None]


def markers_of(template: str) -> Markers:
    """The markers that ``template`` writes."""
    return next((known for known in MARKERS if known.sign in template), TAGS)


def switch_of(template: str) -> str | None:
    """The variable by which ``template`` is told whether to think; None where it asks for none."""
    names = {found[1] for found in _SWITCH.finditer(_without_fields(template))}
    return next((name for name in ("enable_thinking", "thinking") if name in names), None)


def _without_fields(template: str) -> str:
    return _FIELD.sub("", template)


@dataclass
class Splitter:
    """Generated text, piece by piece, as `Part`s. ``thinking``: the prompt has opened it already.

    What may be the beginning of a marker is held back until it is one or is none.
    """

    markers: Markers
    thinking: bool = False
    _held: str = field(default="", init=False)
    _said: bool = field(default=False, init=False)

    def feed(self, text: str, last: bool = False) -> list[Part]:
        """The parts that ``text`` completes; ``last``: nothing follows."""
        self._held += text
        parts: list[Part] = []
        while found := self._next_marker():
            position, marker = found
            self._take(position, parts)
            self._held = self._held[len(marker) :]
            if marker in (self.markers.opened, self.markers.closed):
                self.thinking = marker == self.markers.opened
        self._take(len(self._held) if last else len(self._held) - self._beginning(), parts)
        return parts

    def _take(self, count: int, parts: list[Part]) -> None:
        text, self._held = self._held[:count], self._held[count:]
        if text:
            parts.append(Part(text, self.thinking))
            self._said = self._said or (not self.thinking and not text.isspace())

    def _next_marker(self) -> tuple[int, str] | None:
        found = [(self._held.find(marker), marker) for marker in self._awaited()]
        return min(((at, marker) for at, marker in found if at >= 0), default=None)

    def _awaited(self) -> tuple[str, ...]:
        """The markers that mean something here."""
        if self.thinking:
            return (self.markers.closed, *self.markers.between)
        if self.markers.between or self._may_open():
            return (self.markers.opened, *self.markers.between)
        return ()

    def _may_open(self) -> bool:
        """Whether nothing was said yet, but perhaps the beginning of the marker."""
        begun, opened = self._held.lstrip(), self.markers.opened
        return not self._said and (begun.startswith(opened) or opened.startswith(begun))

    def _beginning(self) -> int:
        """How many characters at the end may be the beginning of a marker."""
        lengths = (
            size
            for marker in self._awaited()
            for size in range(1, len(marker))
            if self._held.endswith(marker[:size])
        )
        return max(lengths, default=0)

    def spelled(self, control: str) -> str:
        """``control``, the text of a control token, if it belongs to a marker; else nothing."""
        known = (self.markers.opened, self.markers.closed, *self.markers.between)
        return control if any(control in marker for marker in known) else ""


def remembered(template: str, thought: str, said: str) -> Mapping[str, Any]:
    """The model's message as ``template`` wants it back: what was thought in a field of its own if
    it has one, else between its markers, where templates that forget it look for it."""
    if not thought:
        return {"role": "assistant", "content": said}
    found = _FIELD.search(template)
    if found:
        return {"role": "assistant", "content": said.lstrip("\n"), found[1]: thought.strip("\n")}
    markers = markers_of(template)
    return {"role": "assistant", "content": f"{markers.opened}{thought}{markers.closed}{said}"}
