"""TensorTypes: which type every tensor of a file takes, expert by expert. Pure data.

What a type's name means is the exporter's affair; here a name is a name. In JSON a layer's experts
are one line, runs of one type shortened:

    "gate_up": {"0": "IQ3_S*3 Q4_K*61"}, "down": {"0": "Q4_K*64"}, "others": {"0.q": "Q5_K"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from tenp_edge.errors import UserError

# What ``--quant`` is called where a plan says the types.
AUTO = "auto"
_MOST_RUN = 10**6

Names = tuple[str, ...]


@dataclass(frozen=True)
class TensorTypes:
    """``gate_up`` and ``down``: layer -> type per expert, of its gate and up, and of its down.

    ``others``: `other_key` -> type of every other matrix that may be quantised. In a plan experts
    are those of the source model, as in its widths (the entry of a removed one says nothing); in
    what an exporter is told, those of the pruned model (`kept`).
    """

    gate_up: Mapping[int, Names]
    down: Mapping[int, Names]
    others: Mapping[str, str]

    def expert(self, layer: int, expert: int, projection: str) -> str:
        """The type of one routed expert's ``projection``: gate, up or down."""
        return self.row(layer, projection)[expert]

    def row(self, layer: int, projection: str) -> Names:
        """The types of all of a layer's experts."""
        return (self.down if projection == "down" else self.gate_up)[layer]

    def kept(self, experts: Mapping[int, Sequence[int]]) -> TensorTypes:
        """Of the model that keeps ``experts`` of each layer, ascending."""

        def rows(types: Mapping[int, Names]) -> dict[int, Names]:
            return {
                layer: tuple(row[expert] for expert in experts[layer])
                for layer, row in types.items()
            }

        return replace(self, gate_up=rows(self.gate_up), down=rows(self.down))

    @property
    def names(self) -> frozenset[str]:
        """Every type that is named."""
        rows = (*self.gate_up.values(), *self.down.values())
        return frozenset(self.others.values()).union(*rows)

    def has_experts(self, counts: Mapping[int, int]) -> bool:
        """Whether these are types of layers with so many experts."""
        rows = ({layer: len(row) for layer, row in of.items()} for of in (self.gate_up, self.down))
        return all(found == dict(counts) for found in rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "gate_up": {str(layer): _joined(row) for layer, row in sorted(self.gate_up.items())},
            "down": {str(layer): _joined(row) for layer, row in sorted(self.down.items())},
            "others": dict(self.others),
        }


def other_key(layer: int | None, role: str) -> str:
    """How a matrix outside the routed experts is named: "3.q" in a layer, "embed" outside."""
    return role if layer is None else f"{layer}.{role}"


def types_of_json(raw: Mapping[str, Any], counts: Mapping[int, int]) -> TensorTypes:
    """`TensorTypes.to_json` read back, for layers of so many experts. Raises UserError for anything
    else."""
    try:
        types = TensorTypes(_rows(raw["gate_up"]), _rows(raw["down"]), _texts(raw["others"]))
    except (KeyError, ValueError, TypeError, AttributeError):
        raise UserError("the plan's types are malformed", "plan again") from None
    if not types.has_experts(counts):
        raise UserError("the plan's types do not have the experts of its widths", "plan again")
    return types


def _joined(row: Names) -> str:
    runs = ((name, len(list(run))) for name, run in groupby(row))
    return " ".join(name if count == 1 else f"{name}*{count}" for name, count in runs)


def _rows(raw: Mapping[str, str]) -> dict[int, Names]:
    return {int(layer): _row(text) for layer, text in raw.items()}


def _row(text: str) -> Names:
    names: list[str] = []
    for word in text.split():
        name, _, count = word.partition("*")
        times = int(count or 1)
        if not 0 < times <= _MOST_RUN:
            raise ValueError(word)
        names += [name] * times
    return tuple(names)


def _texts(raw: Mapping[str, str]) -> dict[str, str]:
    if not all(isinstance(name, str) for name in raw.values()):
        raise ValueError(raw)
    return dict(raw)
