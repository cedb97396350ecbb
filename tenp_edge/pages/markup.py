"""HTML and SVG as Python calls: what is not `Markup` is escaped, so no text can leave its place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from markupsafe import Markup, escape

Child: TypeAlias = "str | int | float | None | Iterable[Child]"
_VOID = frozenset({"meta", "link", "br", "hr", "col"})


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """``<name ...>children</name>``. In attributes' names ``_`` is ``-`` and a last one is left
    out (``class_``); True is an attribute without a value, None and False are none."""
    opening = Markup("<{}{}>").format(Markup(name), _attributes(attributes))
    if name in _VOID:
        return opening
    return Markup("").join((opening, joined(children), Markup(f"</{name}>")))


def joined(children: Child) -> Markup:
    """Everything in ``children``, in order."""
    if children is None:
        return Markup("")
    if isinstance(children, str | int | float):
        return escape(children)
    return Markup("").join(joined(child) for child in children)


def _attributes(attributes: dict[str, str | float | bool | None]) -> Markup:
    parts = []
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        plain = Markup(name.rstrip("_").replace("_", "-"))
        parts.append(
            Markup(" {}").format(plain)
            if value is True
            else Markup(' {}="{}"').format(plain, _short(value))
        )
    return Markup("").join(parts)


def _short(value: str | float) -> str:
    """Coordinates need no more than a hundredth of a pixel."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
