"""Tensor types: what a row costs in each, and the function that encodes rows.

Adding a type is a row in TYPES. A row length that a type cannot hold takes ``fallback`` instead,
as llama.cpp's own quantiser does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tenp_edge.checkpoint import tensor_bytes
from tenp_edge.errors import UserError
from tenp_edge.exporters.gguf.ggml import quantize_rows

Encoder = Callable[[torch.Tensor], memoryview]


@dataclass(frozen=True)
class TensorType:
    """A ggml type: ``block`` values of a row share ``block_bytes`` bytes.

    ``ggml_id`` is the type's number in a tensor info, ``file_type`` that of general.file_type when
    the whole file asks for it. ``encode``: rows [..., row length] in any float dtype -> bytes.
    """

    name: str
    ggml_id: int
    file_type: int
    block: int
    block_bytes: int
    encode: Encoder
    fallback: str | None = None

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of ``shape`` (row-major, last size the row length)."""
        count = self.block_bytes
        for size in shape[:-1]:
            count *= size
        return count * (shape[-1] // self.block)


def _encode_f32(rows: torch.Tensor) -> memoryview:
    return tensor_bytes(rows.float())


def _encode_bf16(rows: torch.Tensor) -> memoryview:
    return tensor_bytes(rows.to(torch.bfloat16))


def _encode_f16(rows: torch.Tensor) -> memoryview:
    half = rows.half()
    if torch.isinf(half).any():
        largest = float(rows.abs().max())
        raise UserError(
            f"a weight of {largest:.4g} does not fit into F16 (at most 65504)",
            "--quant BF16, F32 or Q8_0",
        )
    return tensor_bytes(half)


def _encode_q8_0(rows: torch.Tensor) -> memoryview:
    return quantize_rows(8, rows.float().contiguous(), 34 * (rows.shape[-1] // 32))


TYPES = {
    row.name: row
    for row in (
        TensorType("F32", 0, 0, 1, 4, _encode_f32),
        TensorType("F16", 1, 1, 1, 2, _encode_f16),
        TensorType("BF16", 30, 32, 1, 2, _encode_bf16),
        TensorType("Q8_0", 8, 7, 32, 34, _encode_q8_0, fallback="F16"),
    )
}
QUANTS: tuple[str, ...] = tuple(TYPES)


def legal_type(wanted: str, row_length: int) -> str:
    """``wanted``, or the first fallback whose blocks divide ``row_length``."""
    name: str | None = wanted
    while name is not None and row_length % TYPES[name].block:
        name = TYPES[name].fallback
    assert name is not None, f"{wanted} has no fallback for rows of {row_length}"
    return name
