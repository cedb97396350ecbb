"""The importance matrix as llama.cpp's own tools read it: a GGUF of sums and counts.

    {tensor}.in_sum2  (matrices, columns)  sums of squared inputs, float32
    {tensor}.counts   (matrices, 1)        tokens that they are of

A stacked tensor has a matrix per expert; in the per-expert layout every tensor has one of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tenp_edge.calibration.imatrix import Importance, Squares
from tenp_edge.checkpoint.files import tensor_bytes
from tenp_edge.exporters.base import manifest_file
from tenp_edge.exporters.gguf.fields import Field, header, padded, text, texts, u32
from tenp_edge.exporters.gguf.layout import Entry
from tenp_edge.exporters.gguf.transforms import file_columns, source_role
from tenp_edge.exporters.gguf.types import TYPES
from tenp_edge.models import ModelConfig

_F32 = TYPES["F32"]


def squares_of(config: ModelConfig, importance: Importance, entry: Entry) -> list[Squares]:
    """Of every matrix of one tensor of the file; empty where nothing is known."""
    if entry.layer is None or len(entry.tensor.shape) < 2 or entry.role.endswith("_bias"):
        return []
    if not entry.role.startswith("expert_"):
        squares = matrix_squares(config, importance, entry)
        return [] if squares is None else [squares]
    stacked = range(entry.tensor.shape[0])
    experts = stacked if entry.expert is None else (entry.expert,)
    projection = entry.role.removeprefix("expert_")
    return [importance.expert(entry.layer, expert, projection) for expert in experts]


def matrix_squares(config: ModelConfig, importance: Importance, entry: Entry) -> Squares | None:
    """Of a matrix outside the routed experts, its columns in the file's order; None where nothing
    is known."""
    if entry.layer is None:
        return None
    squares = importance.matrix(entry.layer, source_role(config, entry.role))
    if squares is None:
        return None
    return replace(squares, sums=file_columns(config, entry.role, squares.sums))


def write_imatrix(
    config: ModelConfig, importance: Importance, found: Sequence[Entry], target: Path
) -> None:
    """Write ``target`` for the file whose tensors are ``found``, one tensor at a time."""
    known = [entry for entry in found if squares_of(config, importance, entry)]
    infos = [info for entry in known for info in _infos(entry)]
    head = header(_fields(importance), infos)
    size = len(head) + sum(padded(nbytes) for *_, nbytes in infos)
    with manifest_file(target, size) as stream:
        stream.write(head)
        for entry in known:
            squares, width = squares_of(config, importance, entry), entry.tensor.shape[-1]
            sums = torch.zeros(len(squares), width)
            for row, found_squares in zip(sums, squares, strict=True):
                row[: len(found_squares.sums)] = found_squares.sums
            counts = torch.tensor([float(s.tokens) for s in squares])
            for tensor in (sums, counts):
                data = tensor_bytes(tensor)
                stream.write(data)
                stream.write(b"\0" * (padded(data.nbytes) - data.nbytes))


def _infos(entry: Entry) -> list[tuple[str, tuple[int, ...], int, int]]:
    shape = entry.tensor.shape
    matrices = shape[0] if len(shape) == 3 else 1
    sizes = {"in_sum2": (matrices, shape[-1]), "counts": (matrices, 1)}
    return [
        (f"{entry.tensor.name}.{suffix}", size, _F32.ggml_id, _F32.nbytes(size))
        for suffix, size in sizes.items()
    ]


def _fields(importance: Importance) -> list[Field]:
    return [
        ("general.type", text("imatrix")),
        ("imatrix.datasets", texts(importance.domains)),
        ("imatrix.chunk_count", u32(importance.samples)),
        ("imatrix.chunk_size", u32(importance.seq_len)),
    ]
