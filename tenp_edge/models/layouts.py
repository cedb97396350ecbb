"""How a weight lies in the files: which tensors it is made of, their dtypes and shapes.

A plain weight is one tensor. A quantised one is several (codes, scales, zero points), which the
decoder of the layout's name in `tenp_edge.checkpoint.stored` turns into numbers. No torch in here.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from tenp_edge.models.mixers import Shape
from tenp_edge.models.tensors import Part

WEIGHT_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class PartRule:
    """One tensor of a layout.

    ``suffixes``: what follows the module's name, the first that is in the files counts. They begin
    with a dot for a module's tensors, with none for the parameters of stacked experts.
    ``shapes``: the legal ones. ``rows``: rows of the weight that one entry of the first dimension
    is for; 0 where an entry is for all of them. ``columns``: the same of the second dimension; None
    where columns cannot go without the others. ``transposed``: the first dimension is the columns'.
    ``lanes``: where an entry is a word of a code for each of its rows: the place of each in it.
    """

    suffixes: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[Shape, ...]
    rows: int = 1
    columns: int | None = 1
    transposed: bool = False
    lanes: tuple[int, ...] = ()
    optional: bool = False


Rules = Mapping[str, PartRule]


@dataclass(frozen=True)
class Layout:
    """``name``: of the decoder. ``title``: for people. ``rules``: the parts of a matrix of (rows,
    columns). ``facts``: what the decoder must know besides them (bits, block sizes). ``any_shape``:
    a weight of more dimensions is one weight, not stacked experts."""

    name: str
    title: str
    rules: Callable[[Shape], Rules] = field(repr=False)
    facts: Mapping[str, Any] = field(default_factory=dict)
    any_shape: bool = False

    @cached_property
    def first(self) -> tuple[str, PartRule]:
        """The part that holds the codes, its shape left aside."""
        return next(iter(self.rules((1, 1)).items()))

    def find(self, module: str, shape: Shape, names: Container[str]) -> dict[str, str] | None:
        """The tensor of each part of the weight of ``module``; None where one is missing."""
        tensors: dict[str, str] = {}
        for part, rule in self.rules(shape).items():
            name = next((module + s for s in rule.suffixes if module + s in names), None)
            if name is not None:
                tensors[part] = name
            elif not rule.optional:
                return None
        return tensors


def _plain(shape: Shape) -> Rules:
    return {"weight": PartRule((".weight", ""), WEIGHT_DTYPES, (shape,))}


PLAIN = Layout("plain", "not quantised", _plain)


@dataclass(frozen=True)
class StoredWeight:
    """Where the weight ``name`` of the model is: its layout, and the tensor of each part of it.

    ``shape``: decoded; of stacked experts (experts, rows, columns). ``transposed``: the matrices of
    stacked experts lie in the file as (columns, rows).
    """

    name: str
    shape: Shape
    part: Part
    layout: Layout
    tensors: Mapping[str, str]
    transposed: bool = False

    @property
    def is_plain(self) -> bool:
        return self.layout is PLAIN

    @property
    def stored_shape(self) -> Shape:
        """``shape`` as it is in the file."""
        if not self.transposed:
            return self.shape
        *stack, rows, columns = self.shape
        return (*stack, columns, rows)

    @property
    def rules(self) -> Rules:
        """The rule of each part as it is stored: stacked experts' with the experts first."""
        shape = self.stored_shape
        if len(shape) < 3 or self.layout.any_shape:
            return self.layout.rules(shape)
        rules = self.layout.rules(shape[1:])
        return {part: _stacked(shape[0], rule) for part, rule in rules.items()}

    @property
    def row_step(self) -> int:
        """Rows that must be decoded together: all of them where every part is for the whole."""
        return max(self.rules[part].rows for part in self.tensors) or self.stored_shape[0]

    def parts(self) -> Iterator[tuple[str, PartRule]]:
        """(tensor, rule) of every part that is there."""
        rules = self.rules
        for part, name in self.tensors.items():
            yield name, rules[part]


def _stacked(count: int, rule: PartRule) -> PartRule:
    return replace(rule, shapes=tuple((count, *shape) for shape in rule.shapes))
