"""Rows of a file's matrices, and what a tensor type makes of them, without the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from tenp_edge.checkpoint.source import ModelSource
from tenp_edge.checkpoint.tensor_types import other_key
from tenp_edge.exporters.gguf.layout import Entry
from tenp_edge.exporters.gguf.mixes import typed_matrices
from tenp_edge.exporters.gguf.transforms import is_transformed, to_file
from tenp_edge.exporters.gguf.types import TYPES
from tenp_edge.exporters.gguf.writer import ColumnWeights
from tenp_edge.exporters.mixing import SampledRows, TypedMatrix


def rounded(sample: SampledRows, type: str) -> torch.Tensor:
    """Encoded and decoded; columns weigh as in `sample` where the type can use that. Zeros where
    the type cannot hold the weights: all is lost, so that another one is chosen."""
    kind, rows = TYPES[type], sample.rows.float().contiguous()
    if not kind.can_hold(rows):
        return torch.zeros_like(rows)
    importance = sample.importance if kind.weighs_columns else None
    return kind.decode(bytearray(kind.encode(rows, importance)), tuple(rows.shape))


def sampled_matrices(
    source: ModelSource, found: Iterable[Entry], weights: ColumnWeights, rows: int
) -> Iterator[tuple[TypedMatrix, SampledRows]]:
    """About ``rows`` rows of each of the file's matrices outside the routed experts."""
    entries = list(found)
    by_key = {other_key(entry.layer, entry.role): entry for entry in entries}
    for matrix in typed_matrices(entries):
        entry = by_key[matrix.key]
        if entry.name is not None:
            yield matrix, SampledRows(_rows(source, entry, rows), weights.importance(entry))


def _rows(source: ModelSource, entry: Entry, count: int) -> torch.Tensor:
    """Spread over the matrix, [n, columns]."""
    assert entry.name is not None
    columns = entry.tensor.shape[-1]
    if is_transformed(source.config, entry.role):
        whole = to_file(source.config, entry.role, source.read(entry.name)).reshape(-1, columns)
        return whole[:: max(1, len(whole) // count)][:count]
    total = entry.tensor.shape[0]
    starts = range(0, total, max(1, total // count))
    rows = [source.read_rows(entry.name, start, start + 1) for start in starts[:count]]
    return torch.cat(rows)
