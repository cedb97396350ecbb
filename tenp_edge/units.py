"""Sizes as people write them: GiB and MiB are binary, GB and MB decimal, a bare G is GiB."""

from __future__ import annotations

import re

from tenp_edge.errors import UserError

_UNITS = {
    "b": 1,
    "k": 2**10,
    "kib": 2**10,
    "kb": 10**3,
    "m": 2**20,
    "mib": 2**20,
    "mb": 10**6,
    "g": 2**30,
    "gib": 2**30,
    "gb": 10**9,
    "t": 2**40,
    "tib": 2**40,
    "tb": 10**12,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([a-zA-Z]*)\s*")


def parse_size(text: str) -> int:
    """Bytes in ``text`` ("8GiB", "7.5 GB", "512M"). Raises UserError for anything else, a bare
    number too: nobody means 8 bytes."""
    match = _SIZE.fullmatch(text)
    zero = match is not None and float(match[1]) == 0
    if match is not None and not match[2] and not zero:
        raise UserError(f"'{text}' has no unit", f"{text.strip()}GiB or {text.strip()}MiB")
    unit = None if match is None else _UNITS.get(match[2].lower() or "b")
    if match is None or unit is None:
        raise UserError(f"'{text}' is not a size", "a number with a unit: 8GiB, 7.5GB, 512MiB")
    size = round(float(match[1]) * unit)
    if size <= 0:
        raise UserError(f"'{text}' is not a size above zero", "8GiB, 7.5GB or 512MiB")
    return size


def format_size(size_bytes: float) -> str:
    """``size_bytes`` in the largest binary unit that leaves at least 1: "4.31 GiB"."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} GiB"


def format_count(count: float) -> str:
    """Parameters in short: "14.3B", "41.2M"."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(count) >= scale:
            return f"{count / scale:.1f}{unit}"
    return f"{count:.0f}"


def nats(value: float) -> str:
    """Four places, and three digits below a hundredth: models that lose next to nothing
    still differ in it. What is below a millionth is the arithmetic's own noise."""
    if 0 < value < 1e-6:
        return "< 1e-6"
    return f"{value:.4f}" if value == 0 or value >= 0.01 else f"{value:#.3g}"


def percent(share: float, places: int = 1) -> str:
    """ "91.1 %" of 0.911: with a blank, as everywhere here."""
    return f"{100 * share:.{places}f} %"


def write_size(nbytes: int) -> str:
    """``nbytes`` exactly, as `parse_size` reads it back: "8GiB", "50.8MiB", or else in bytes."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= scale:
            number = f"{nbytes / scale:.2f}".rstrip("0").rstrip(".")
            written = f"{number}{unit}"
            if parse_size(written) == nbytes:
                return written
    return f"{nbytes}B"


def counted(number: int, unit: str) -> str:
    """ "6 layers", "1 layer": ``unit`` is a plural with an s."""
    return f"{number:,} {unit.removesuffix('s') if number == 1 else unit}"


def format_seconds(seconds: float) -> str:
    """ "42 s", "7 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
