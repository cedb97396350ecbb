"""What the table must show: how much of the others' loss a searched plan may have at equal bytes.

Of the best whole model that fits never more than all, at four bits half, and a quarter at three
bits and less; of the best single type with pruning 0.7, wherever the plan has several types. Where
rows are too short for a type's blocks and the whole model falls back to four bits, the bytes are
those of four bits, and so is the bar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

JOINT = "joint"
_ALL, _SINGLE = 1.0, 0.7
# By the name of the budget; the others: no more than the whole model.
_OF_WHOLE = {"Q5_K_M": 0.8, "IQ4_XS": 0.5} | dict.fromkeys(
    ("IQ3_XXS", "Q2_K", "IQ2_M", "IQ2_XXS", "IQ1_M"), 0.25
)


@dataclass(frozen=True)
class Bar:
    """``ratio``: KL of ``way`` over that of ``rival`` in one budget, at most ``limit``."""

    budget: str
    seed: int
    way: str
    rival: str
    ratio: float
    limit: float

    @property
    def held(self) -> bool:
        return self.ratio <= self.limit


def bars(result: Mapping[str, Any], way: str = JOINT) -> list[Bar]:
    """Every bar that the rows of ``result`` let be judged, of the row called ``way``."""
    groups: dict[tuple[int, int], dict[str, Mapping[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault((row["budget_bytes"], row["seed"]), {})[row["way"]] = row
    return [bar for rows in groups.values() if way in rows for bar in _of(rows, way)]


def _of(rows: Mapping[str, Mapping[str, Any]], way: str) -> list[Bar]:
    row, judged = rows[way], []
    if "whole" in rows:
        judged.append(_bar(row, rows["whole"], _limit(row["budget"], row["budget_type"])))
    if "pruned" in rows and row["type_count"] > 1:
        judged.append(_bar(row, rows["pruned"], _SINGLE))
    return judged


def _limit(names: Sequence[str], kind: str) -> float:
    """Of the budget called ``names``, in which most of the experts' bytes are of type ``kind``."""
    bits = kind.partition("_")[0]
    own = [name for name in names if name.partition("_")[0] == bits]
    return max((_OF_WHOLE.get(name, _ALL) for name in own), default=_OF_WHOLE["IQ4_XS"])


def _bar(row: Mapping[str, Any], rival: Mapping[str, Any], limit: float) -> Bar:
    own, other = (one["overall"]["mean_kl"] for one in (row, rival))
    ratio = own / other if other > 0 else 0.0 if own == 0 else float("inf")
    return Bar(" = ".join(row["budget"]), row["seed"], row["way"], rival["way"], ratio, limit)
