"""Ranges of a model's activations: what fixed scales of a static quantisation are made from.

Of every matrix multiplication, by the name of its weight: the least and the greatest number that
goes in, that comes out of the product, and that is left once the bias is added. They are measured
by `range_measuring`; exporters need the numbers alone, and no transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenp_edge.disk import read_json, write_json
from tenp_edge.errors import UserError

FORMAT, VERSION = "tenp-edge ranges", 1


@dataclass(frozen=True)
class Span:
    """From the least to the greatest of some numbers; always around zero, which padding is."""

    least: float = 0.0
    most: float = 0.0

    def __or__(self, other: Span) -> Span:
        return Span(min(self.least, other.least), max(self.most, other.most))


@dataclass(frozen=True)
class MatrixRange:
    """What one matrix is fed, what its product is, and the layer's output with the bias."""

    given: Span
    product: Span
    output: Span

    def __or__(self, other: MatrixRange) -> MatrixRange:
        return MatrixRange(
            self.given | other.given, self.product | other.product, self.output | other.output
        )


def union(ranges: Iterable[MatrixRange]) -> MatrixRange:
    whole = MatrixRange(Span(), Span(), Span())
    for matrix_range in ranges:
        whole |= matrix_range
    return whole


@dataclass(frozen=True)
class Ranges:
    """``model``: digest of the model that was measured; ``data``: of its tokens; ``of``: name of a
    weight -> range."""

    model: str
    data: str
    tokens: int
    of: Mapping[str, MatrixRange]

    def __getitem__(self, weight: str) -> MatrixRange:
        return self.of[weight]

    def save(self, file: Path) -> None:
        named = {
            name: [edge for span in (r.given, r.product, r.output) for edge in _edges(span)]
            for name, r in self.of.items()
        }
        raw = {"format": FORMAT, "version": VERSION, "model": self.model, "data": self.data}
        write_json(file, raw | {"tokens": self.tokens, "ranges": named}, indent=None)


def load_ranges(file: Path) -> Ranges:
    """The ranges in ``file``. Raises UserError when it is something else."""
    raw = read_json(file)
    if raw.get("format") != FORMAT or raw.get("version") != VERSION:
        raise UserError(f"{file} holds no ranges of version {VERSION}", "delete it")
    try:
        of = {name: _range(row) for name, row in raw["ranges"].items()}
        return Ranges(str(raw["model"]), str(raw["data"]), int(raw["tokens"]), of)
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{file} is damaged", "delete it") from None


def _edges(span: Span) -> tuple[float, float]:
    return span.least, span.most


def _range(row: Any) -> MatrixRange:
    numbers = [float(value) for value in row]
    a, b, c, d, e, f = numbers
    return MatrixRange(Span(a, b), Span(c, d), Span(e, f))
