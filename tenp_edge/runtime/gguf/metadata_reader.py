"""Metadata of a file by key, each with its type and range checked."""

from __future__ import annotations

import math

import numpy as np

from tenp_edge.errors import UserError, shown
from tenp_edge.runtime.gguf.header import Header

_SHOWN = 240
LARGEST = 2**24  # No size of a model is larger; keeps products small.
# Keys that we write and that are not read here: the tensors say the same, or, of the last,
# llama.cpp asks for it and uses it for nothing.
_TOLD_BY_TENSORS = frozenset(
    "vocab_size feed_forward_length expert_feed_forward_length expert_shared_feed_forward_length "
    "expert_shared_count rope.scaling.yarn_beta_fast rope.scaling.yarn_beta_slow "
    "attention.layer_norm_epsilon".split()
)


class Fields:
    """The metadata of one file; ``prefix``: its architecture, before most keys."""

    def __init__(self, header: Header) -> None:
        self.header, self.prefix = header, ""
        self._read: set[str] = set()

    def error(self, why: str) -> UserError:
        return UserError(
            f"{self.header.file} cannot be run: {shown(why, _SHOWN)}", "export it again"
        )

    def _value(self, key: str) -> object:
        fields, full_key = self.header.fields, f"{self.prefix}.{key}"
        self._read.add(full_key)
        return fields.get(full_key, fields.get(key))

    def unread(self) -> list[str]:
        """Keys of the architecture that nobody asked for, and those of a file in parts."""
        known = self._read | {f"{self.prefix}.{key}" for key in _TOLD_BY_TENSORS}
        starts = (f"{self.prefix}.", "split.")
        return [key for key in self.header.fields if key.startswith(starts) and key not in known]

    def integer(self, key: str, default: int | None = None) -> int:
        """A size: 1 or more, or 0 where that is the default."""
        value = self._value(key)
        value = default if value is None else value
        minimum = 0 if default == 0 else 1
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= LARGEST:
            raise self.error(f"{key} is {value!r}, not a size")
        return value

    def integers(self, key: str) -> list[int]:
        value = self._value(key)
        if not isinstance(value, np.ndarray) or not np.issubdtype(value.dtype, np.integer):
            raise self.error(f"{key} is not a list of numbers")
        return [int(item) for item in value.tolist()]

    def flags(self, key: str) -> list[bool]:
        value = self._value(key)
        if not isinstance(value, np.ndarray) or value.dtype != np.bool_:
            raise self.error(f"{key} is not a list of true and false")
        return [bool(item) for item in value.tolist()]

    def real(self, key: str, default: float | None = None) -> float:
        value = self._value(key)
        value = default if value is None else value
        if not isinstance(value, float) or not math.isfinite(value) or value < 0.0:
            raise self.error(f"{key} is {value!r}, not a number")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._value(key)
        if value is not None and not isinstance(value, bool):
            raise self.error(f"{key} is {value!r}, not true or false")
        return default if value is None else value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key)
        value = default if value is None else value
        if not isinstance(value, str):
            raise self.error(f"{key} is not a text")
        return value
