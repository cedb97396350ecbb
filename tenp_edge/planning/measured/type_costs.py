"""What each tensor type costs one model, as it was measured: WORK/types.json.

`type_sensitivity` measures and writes it, the planner reads it: with it types and widths are chosen
together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from tenp_edge.disk import read_json, write_json
from tenp_edge.errors import UserError

Made = TypeVar("Made")

FILE = "types.json"
FORMAT, VERSION = "tenp-edge types", 1


@dataclass(frozen=True)
class Conditions:
    """What a type's loss depends on besides the type.

    ``fingerprint`` of the checkpoint, ``slice`` of the text; ``imatrix`` and ``tensor_types`` as in
    `base.ExportOptions`. A type rounds alike in all layouts of its ``format``.
    """

    fingerprint: str
    slice: str
    format: str
    imatrix: bool
    tensor_types: tuple[str, ...] = ()

    @classmethod
    def of_json(cls, stored: Mapping[str, Any]) -> Conditions:
        names = ("fingerprint", "slice", "format", "imatrix")
        return cls(**{n: stored[n] for n in names}, tensor_types=tuple(stored["tensor_types"]))

    def holds(self, format: str, imatrix: bool, tensor_types: tuple[str, ...]) -> bool:
        """Whether files of these options are like those that were measured."""
        return (self.format, self.imatrix, self.tensor_types) == (format, imatrix, tensor_types)


@dataclass(frozen=True)
class TypeCost:
    """The dense model with its weights in one type, on the held-out slice.

    ``kl``: nats per token, of all weights: ``layers_kl`` of the sampled layers times ``scale``,
    plus ``ends_kl`` of embeddings and output matrix, which is part of ``layers_kl`` where every
    layer was quantised. ``seconds``: its share of the pass.
    """

    kl: float
    layers_kl: float
    ends_kl: float
    scale: float
    seconds: float


@dataclass(frozen=True)
class TypeCosts:
    """``layers``: those that were quantised. ``layout`` is for the record."""

    conditions: Conditions
    layout: str
    layers: tuple[int, ...]
    types: Mapping[str, TypeCost] = field(default_factory=dict)

    def kl(self, quant: str) -> float | None:
        """Nats per token that ``quant`` costs the dense model; None where it was not measured."""
        cost = self.types.get(quant)
        return None if cost is None else cost.kl

    def with_types(self, more: Mapping[str, TypeCost]) -> TypeCosts:
        return replace(self, types={**self.types, **more})

    def to_json(self) -> dict[str, Any]:
        record: dict[str, Any] = {"kind": FORMAT, "version": VERSION, **asdict(self.conditions)}
        record |= {"layout": self.layout, "layers": list(self.layers)}
        return record | {"types": {name: asdict(cost) for name, cost in self.types.items()}}

    def save(self, directory: Path) -> None:
        """Write types.json, whole or not at all."""
        write_json(directory / FILE, self.to_json())


def load_costs(directory: Path) -> TypeCosts | None:
    """The measurements in ``directory``; None without any, or of another version.

    Raises UserError for a file that is not ours.
    """
    return read_measured(directory / FILE, FORMAT, VERSION, _costs)


def _costs(stored: Mapping[str, Any]) -> TypeCosts:
    types = {name: TypeCost(**cost) for name, cost in stored["types"].items()}
    conditions = Conditions.of_json(stored)
    return TypeCosts(conditions, stored["layout"], tuple(stored["layers"]), types)


def read_measured(
    file: Path, kind: str, version: int, made_of: Callable[[Mapping[str, Any]], Made]
) -> Made | None:
    """``made_of`` the record in ``file``; None without any, or of another version.

    Raises UserError for a file that is not of this ``kind``, or damaged.
    """
    if not file.is_file():
        return None
    stored = read_json(file)
    if stored.get("kind") != kind:
        raise UserError(f"{file} was not written by tenp-edge", "calibrate --types again")
    if stored.get("version") != version:
        return None
    try:
        return made_of(stored)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{file} is damaged", "delete it, calibrate --types again") from None
