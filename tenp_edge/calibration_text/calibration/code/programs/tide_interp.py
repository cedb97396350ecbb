#!/usr/bin/env python3
"""Estimate water height between high and low tide.

Tide tables only list the turning points. Between two of them the water moves
roughly like half a cosine, which is what sailors approximate with the "rule of
twelfths". This script does the cosine properly and answers the question I
actually have: between which clock times can I get over the bar?
"""
from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True, order=True)
class Turn:
    when: datetime
    height: float  # metres above chart datum


def height_at(t: datetime, before: Turn, after: Turn) -> float:
    """Height at ``t``, which must lie between the two turning points.

    >>> lo = Turn(datetime(2023, 5, 4, 6, 0), 1.0)
    >>> hi = Turn(datetime(2023, 5, 4, 12, 0), 5.0)
    >>> height_at(datetime(2023, 5, 4, 9, 0), lo, hi)
    3.0
    """
    if not before.when <= t <= after.when:
        raise ValueError(f"{t} is outside {before.when} .. {after.when}")
    span = (after.when - before.when).total_seconds()
    phase = math.pi * (t - before.when).total_seconds() / span
    mean = (before.height + after.height) / 2
    swing = (before.height - after.height) / 2
    return round(mean + swing * math.cos(phase), 6)


def crossing(before: Turn, after: Turn, level: float) -> datetime | None:
    """When the water passes ``level`` on this leg, or None if it never does."""
    lo, hi = sorted((before.height, after.height))
    if not lo < level < hi:
        return None
    mean = (lo + hi) / 2
    swing = (before.height - after.height) / 2
    phase = math.acos((level - mean) / swing)
    return before.when + (after.when - before.when) * (phase / math.pi)


def windows(turns: list[Turn], level: float) -> list[tuple[datetime, datetime]]:
    """Intervals during which the height is at least ``level``.

    The first and last turning points clip the result: nothing is known about
    the water outside the table.
    """
    turns = sorted(turns)
    result: list[tuple[datetime, datetime]] = []
    opened = turns[0].when if turns[0].height >= level else None
    for a, b in zip(turns, turns[1:]):
        t = crossing(a, b, level)
        if t is None:
            continue
        if opened is None:
            opened = t
        else:
            result.append((opened, t))
            opened = None
    if opened is not None:
        result.append((opened, turns[-1].when))
    return result


def parse_line(line: str) -> Turn:
    stamp, metres = line.rsplit(maxsplit=1)
    return Turn(datetime.strptime(stamp, "%Y-%m-%d %H:%M"), float(metres))


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("table", type=argparse.FileType("r"), nargs="?", default=sys.stdin)
    p.add_argument("--sill", type=float, default=0.4, help="height of the bar (m)")
    p.add_argument("--draught", type=float, required=True)
    p.add_argument("--clearance", type=float, default=0.3)
    args = p.parse_args(argv)

    turns = [parse_line(s) for s in args.table if s.strip() and not s.startswith("#")]
    if len(turns) < 2:
        print("need at least two turning points", file=sys.stderr)
        return 1
    need = args.sill + args.draught + args.clearance
    for start, end in windows(turns, need):
        length = timedelta(seconds=round((end - start).total_seconds()))
        print(f"{start:%a %H:%M} - {end:%a %H:%M}   ({length})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
