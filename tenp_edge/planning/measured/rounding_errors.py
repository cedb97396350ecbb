"""What every tensor type does to one model's weights, as it was measured: WORK/rounding.json, and
rounding-FORMAT.json for the types of another format than GGUF.

`evaluation.rounding` measures and writes it; with it the planner chooses widths and types together
(`joint.tables`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tenp_edge.checkpoint.tensor_types import other_key
from tenp_edge.disk import write_json
from tenp_edge.planning.measured.trials import Trial
from tenp_edge.planning.measured.type_costs import Conditions, read_measured

FILE = "rounding.json"
FIRST_FORMAT = "gguf"  # whose file has no name of the format in it: it was the first
FORMAT, VERSION = "tenp-edge rounding", 4

# Type -> its relative squared error: sum of E_kj^2 q_j over that of W_kj^2 q_j, q the importance of
# the columns.
Errors = Mapping[str, float]

# Matrices of the experts whose types are chosen, and measured, together.
EXPERT_GROUPS: Mapping[str, tuple[str, ...]] = {"gate_up": ("gate", "up"), "down": ("down",)}


@dataclass(frozen=True)
class GroupCost:
    """The model with all matrices of one group in ``type``, on held-out text: ``kl`` nats per
    token. ``layers``: those that were rounded, () for what lies outside all layers; ``error``: the
    sum of the relative squared errors there, 0 of experts, whose sums say more (`joint.losses`)."""

    type: str
    kl: float
    error: float
    layers: tuple[int, ...]


@dataclass(frozen=True)
class MixedCost:
    """A plan: its predicted ``loss`` for the calibrated text, and the ``kl`` that was measured,
    nats per token."""

    loss: float
    kl: float


@dataclass(frozen=True)
class RoundingErrors:
    """``experts``: layer -> projection -> Errors, of some layers; ``others``: `other_key` -> Errors
    of every other matrix. ``groups``: what rounding a whole group cost, by the role of its matrices
    ("q"), or "gate_up" and "down" of the experts. ``plans``: what a few plans of many widths and
    types cost; ``cuts``: what a few that are only cut do, where `trials` do not say; ``elsewhere``:
    what those cost text of other kinds. ``seconds``: what measuring took."""

    conditions: Conditions
    experts: Mapping[int, Mapping[str, Errors]]
    others: Mapping[str, Errors]
    groups: Mapping[str, GroupCost] = field(default_factory=dict)
    plans: tuple[MixedCost, ...] = ()
    cuts: tuple[Trial, ...] = ()
    elsewhere: tuple[MixedCost, ...] = ()
    seconds: float = 0.0

    def of_expert(self, layer: int, projection: str) -> Errors:
        """Of the nearest layer that was sampled."""
        return self.experts[self.nearest(layer)][projection]

    def nearest(self, layer: int) -> int:
        """The layer that was sampled for the experts of ``layer``."""
        return min(self.experts, key=lambda known: abs(known - layer))

    def of_other(self, layer: int | None, role: str) -> Errors | None:
        """None where the matrix was not sampled."""
        return self.others.get(other_key(layer, role))

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"kind": FORMAT, "version": VERSION, **asdict(self.conditions)}
        record |= {"seconds": self.seconds, "others": {k: dict(v) for k, v in self.others.items()}}
        record["experts"] = {
            str(layer): {part: dict(errors) for part, errors in parts.items()}
            for layer, parts in self.experts.items()
        }
        for name in ("plans", "elsewhere"):
            record[name] = [asdict(cost) for cost in getattr(self, name)]
        record["cuts"] = [cut.to_json() for cut in self.cuts]
        return record | {"groups": {name: asdict(cost) for name, cost in self.groups.items()}}

    def save(self, directory: Path) -> None:
        """Write the file of its format, whole or not at all."""
        write_json(directory / file_of(self.conditions.format), self.to_json())


def file_of(format: str) -> str:
    """The name of what was measured of the types of ``format``."""
    return FILE if format == FIRST_FORMAT else f"rounding-{format}.json"


def is_errors_file(name: str) -> bool:
    """Whether `file_of` gives that name to some format's."""
    return name == FILE or re.fullmatch(r"rounding-[a-z0-9_-]+\.json", name) is not None


def load_errors(directory: Path, format: str = FIRST_FORMAT) -> RoundingErrors | None:
    """What was measured in ``directory`` of the types of ``format``; None without any, or of
    another version.

    Raises UserError for a file that is not ours.
    """
    return read_measured(directory / file_of(format), FORMAT, VERSION, _errors)


def _errors(stored: Mapping[str, Any]) -> RoundingErrors:
    experts = {int(layer): parts for layer, parts in stored["experts"].items()}
    groups = {
        name: GroupCost(**{**cost, "layers": tuple(cost["layers"])})
        for name, cost in stored["groups"].items()
    }
    plans, elsewhere = (
        tuple(MixedCost(**cost) for cost in stored[name]) for name in ("plans", "elsewhere")
    )
    return RoundingErrors(
        conditions=Conditions.of_json(stored),
        experts=experts,
        others=stored["others"],
        groups=groups,
        plans=plans,
        cuts=tuple(Trial.from_json(cut) for cut in stored["cuts"]),
        elsewhere=elsewhere,
        seconds=float(stored["seconds"]),
    )
