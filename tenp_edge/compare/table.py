"""The comparison's rows over the seeds: means and spreads, for the terminal and the picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Over the calibration seeds: mean, lowest and highest."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        listed = list(values)
        return cls(sum(listed) / len(listed), min(listed), max(listed))

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ±{(self.high - self.low) / 2:.4f}"


@dataclass(frozen=True)
class Line:
    """One method at one ratio, over the seeds. ``kl_by_domain``: domain -> mean KL, nats."""

    method: str
    keep: float
    kept: float
    expert_bytes: int
    active_ratio: float | None
    kl: Spread
    perplexity_ratio: Spread
    same_top: Spread
    kl_by_domain: Mapping[str, Spread]
    tasks: Mapping[str, Spread]


def lines(result: Mapping[str, Any]) -> list[Line]:
    """Every method at every ratio: ratios as they were measured, methods by their mean KL."""
    groups: dict[tuple[float, str], list[Mapping[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["keep"], row["method"]), []).append(row)
    ratios = list(dict.fromkeys(row["keep"] for row in result["rows"]))
    made = [_line(rows) for rows in groups.values()]
    return sorted(made, key=lambda line: (ratios.index(line.keep), line.kl.mean))


def _line(rows: Sequence[Mapping[str, Any]]) -> Line:
    first = rows[0]

    def overall(name: str) -> Spread:
        return Spread.of(row["overall"][name] for row in rows)

    active = [row["active_ratio"] for row in rows if row["active_ratio"] is not None]
    tasks = [name for name in first["overall"] if name.startswith(("cloze", "arithmetic"))]
    return Line(
        method=first["method"],
        keep=first["keep"],
        kept=first["kept"],
        expert_bytes=first["expert_bytes"],
        active_ratio=sum(active) / len(active) if active else None,
        kl=overall("mean_kl"),
        perplexity_ratio=overall("perplexity_ratio"),
        same_top=overall("same_top"),
        kl_by_domain={
            domain: Spread.of(row["text"][domain]["mean_kl"] for row in rows)
            for domain in first["text"]
        },
        tasks={name: overall(name) for name in tasks},
    )
