"""Values of config.json by key, each with its type and range checked; the errors that name them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.models.family import Family

BELONGS = "the config.json that belongs to the checkpoint"
# No model has more.
MOST = 2**31 - 1
_MOST_REAL = 3e38  # What a float32 holds: files store these numbers as such.
_SHOWN = 60


class ConfigReader:
    """Looks a key up in config.json, then in the family's defaults, then refuses."""

    def __init__(self, raw: Mapping[str, Any], family: Family) -> None:
        self.raw, self.family, self.defaults = _renamed(raw, family), family, family.defaults

    def value(self, *keys: str, default: Any = None) -> Any:
        for source in (self.raw, self.defaults):
            for key in keys:
                if source.get(key) is not None:
                    return source[key]
        return default

    def integer(self, *keys: str, default: int | None = None, most: int = MOST) -> int:
        """The first of ``keys`` that is there; 0 is legal only where it is the default."""
        value = self.value(*keys, default=default)
        minimum = 0 if default == 0 else 1
        if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
            raise malformed(keys[0], value, "a number above zero")
        if value > most:
            raise UserError(
                f"config.json: {keys[0]} is {value}; no model has more than {most}", BELONGS
            )
        return value

    def number(self, key: str, default: float | None = None, *, zero: bool = False) -> float:
        """A finite number above zero; ``zero`` is legal where it is said."""
        return finite(key, self.value(key, default=default), zero=zero)

    def with_values(self, values: Mapping[str, Any]) -> ConfigReader:
        """The same with ``values`` in the place of what config.json says."""
        made = copy(self)
        made.raw = {**self.raw, **values}
        return made

    def flag(self, key: str | None) -> bool:
        """True or false; false where there is no such key."""
        value = self.value(key, default=False) if key else False
        if not isinstance(value, bool):
            raise malformed(str(key), value, "true or false")
        return value

    def layers(self, key: str) -> set[int]:
        """A list of layer numbers, empty where there is none."""
        value = self.value(key, default=[])
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise malformed(key, value, "a list of layers")
        return set(value)


def _renamed(raw: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """``raw`` with the family's own keys under the names of the others too."""
    renamed = dict(raw)
    for key, usual in family.renamed_keys.items():
        value, other = raw.get(key), raw.get(usual)
        if value is None:
            continue
        if other is not None and other != value:
            raise contradiction(f"{key} is {value}, {usual} is {other}")
        renamed[usual] = value
    return renamed


def finite(key: str, value: Any, *, zero: bool = False) -> float:
    """``value`` as a finite number above zero (or zero); UserError in the name of ``key``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise malformed(key, value, "a number")
    if not (0.0 if zero else math.ulp(0.0)) <= value < math.inf or value > _MOST_REAL:
        raise malformed(key, value, f"a number {'of zero or more' if zero else 'above zero'}")
    return float(value)


def malformed(key: str, value: Any, wanted: str) -> UserError:
    """The error for a value of another kind than ``wanted``."""
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return UserError(f"config.json: {key} is {shown}, not {wanted}", BELONGS)


def contradiction(what: str) -> UserError:
    """The error for a config.json whose values exclude one another."""
    return UserError(f"config.json contradicts itself: {what}", BELONGS)


def refuse(what: str, supported: object) -> UserError:
    """The error for a config value that is not understood."""
    return UserError(f"config.json: {what} is not supported", f"supported: {supported}")
