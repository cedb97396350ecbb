"""What a model thinks and what it answers: the marks between, and how templates speak of it.

`chat_formats.reading` takes answers apart; `Part` is what it finds.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenp_edge.runtime.generation import Piece

if TYPE_CHECKING:
    from tenp_edge.runtime.chat_formats.calls import Call


@dataclass(frozen=True)
class Thinking:
    """Thoughts stand between ``opens`` and ``closes``."""

    opens: str
    closes: str


# Also for templates that name none: many models were trained to think after these.
TAGS = Thinking("<think>", "</think>")
# A template that thinks writes the end of it; the first that fits counts.
KINDS = (
    Thinking("<|channel>thought\n", "<channel|>"),  # Gemma 4
    TAGS,
    Thinking("[THINK]", "[/THINK]"),
    Thinking("◁think▷", "◁/think▷"),  # Kimi-VL
)
# What templates call the thinking of a message that was said before.
_FIELD = re.compile(r"""(?:\.|\[['"])(reasoning_content|thinking|reasoning)\b""")
# What they ask, to know whether the model is to think.
_SWITCH = re.compile(r"\b(enable_thinking|thinking)\b(?! *\()")


@dataclass(frozen=True)
class Part:
    """Something of an answer: ``kind`` is "content" or "reasoning", with ``text``, or "call"."""

    kind: str
    text: str = ""
    call: Call | None = None

    @property
    def thinking(self) -> bool:
        return self.kind == "reasoning"


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


def kind_of(template: str) -> Thinking | None:
    """The marks that ``template`` writes; None where it writes none."""
    return next((kind for kind in KINDS if kind.closes in template), None)


def switch_of(template: str) -> str | None:
    """The variable by which ``template`` is told whether to think; None where it asks for none."""
    names = {found[1] for found in _SWITCH.finditer(_without_fields(template))}
    return next((name for name in ("enable_thinking", "thinking") if name in names), None)


def _without_fields(template: str) -> str:
    return _FIELD.sub("", template)


def remembered(template: str, parts: Sequence[Part]) -> Mapping[str, Any]:
    """The model's message of ``parts`` as ``template`` wants it back: what was thought in a field
    of its own if it has one, else between its marks, where templates that forget it look for it."""
    thought, said = (
        "".join(part.text for part in parts if part.thinking is thinking)
        for thinking in (True, False)
    )
    message = {"role": "assistant", "content": said}
    if not thought:
        return message
    if found := _FIELD.search(template):
        return {**message, found[1]: thought}
    kind = kind_of(template) or TAGS
    # With the lines between them that models write.
    before = f"{kind.opens.rstrip()}\n{thought}\n{kind.closes}"
    return {**message, "content": f"{before}\n\n{said}" if said else before}
