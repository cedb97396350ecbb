"""Whose file a GGUF is: ours per expert, ours for llama.cpp, or another program's."""

from __future__ import annotations

from collections.abc import Mapping

from tenp_edge.runtime.gguf.header import Value

LAYOUT = "per-expert"
# Before the architecture's name in a per-expert file. No other program knows such a name, so it
# says so at once, instead of missing a tensor of the architecture that it thinks it knows.
OWN = "tenp-"
STACKED = ("merged", "padded")


def is_per_expert(fields: Mapping[str, Value]) -> bool:
    """Whether a file with these fields is for our runtime; others are llama.cpp's."""
    layout = fields.get("tenp.layout")
    return isinstance(layout, str) and layout == LAYOUT


def is_ours(fields: Mapping[str, Value]) -> bool:
    """Whether a file with these fields says that tenp-edge wrote it, in any layout."""
    return fields.get("tenp.layout") is not None
