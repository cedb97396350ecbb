"""Tensor types: what a row costs in each, and the function that encodes rows.

Adding a type is a row in TYPES. A row length that a type cannot hold takes ``fallback`` instead,
as llama.cpp's own quantiser does. What a user asks for is a file type (FILE_TYPES), whose tensors
`recipes` gives their own types.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from tenp_edge.checkpoint.files import tensor_bytes
from tenp_edge.checkpoint.stored.ggml import to_float
from tenp_edge.errors import UserError
from tenp_edge.exporters.base import KEEP
from tenp_edge.exporters.gguf.quantiser import quantize_rows

Encoder = Callable[[torch.Tensor, torch.Tensor | None], memoryview]


@dataclass(frozen=True)
class TensorType:
    """A ggml type: ``block`` values of a row share ``block_bytes`` bytes.

    ``ggml_id`` is the type's number in a tensor info. ``largest``: magnitude of a weight that it
    holds. ``needs_importance``: it cannot be encoded well without (llama.cpp refuses to), and for
    some of these types ggml would end the process.
    """

    name: str
    ggml_id: int
    block: int
    block_bytes: int
    encoder: Encoder
    largest: float
    fallback: str | None = None
    needs_importance: bool = False

    def encode(
        self, rows: torch.Tensor, importance: torch.Tensor | None = None, name: str = "a matrix"
    ) -> memoryview:
        """The bytes of ``rows``, [..., row length] in any float dtype.

        ``importance``: float32 [row length], what the columns weigh, for types that can use it;
        where nothing is known of a matrix, all columns weigh alike. Raises UserError, which calls
        the tensor ``name``, for values that the type cannot hold.
        """
        largest = _largest(rows)
        if not largest <= self.largest:  # nor NaN
            raise UserError(
                f"{name} has a weight of {largest:.4g}, {self.name} holds {self.largest:.4g} at "
                "most",
                f"--quant {_types_that_hold(largest)}",
            )
        if importance is None and self.needs_importance:
            importance = torch.ones(rows.shape[-1])
        if self.name in _GRIDS:
            _check_sums(self.name, largest, importance)
        return self.encoder(rows, importance)

    def can_hold(self, rows: torch.Tensor) -> bool:
        """Whether no weight is too large (nor NaN)."""
        return _largest(rows) <= self.largest

    def decode(self, data: bytearray, shape: tuple[int, ...]) -> torch.Tensor:
        """Float32 [``shape``] (rows of whole blocks) of stored ``data``."""
        return to_float(self.ggml_id, torch.frombuffer(data, dtype=torch.uint8)).reshape(shape)

    @property
    def weighs_columns(self) -> bool:
        """Whether importance changes the bytes: many types only round."""
        return self.name not in FLOAT_TYPES and self.name not in _ROUNDED

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of ``shape`` (row-major, last size the row length)."""
        count = self.block_bytes
        for size in shape[:-1]:
            count *= size
        return count * (shape[-1] // self.block)


def _largest(rows: torch.Tensor) -> float:
    """Magnitude of the largest weight, without a copy of ``rows``."""
    low, high = torch.aminmax(rows)
    return float(torch.maximum(-low, high))


def _types_that_hold(largest: float) -> str:
    """Files all of whose types hold a weight of ``largest``."""
    held = [name for name in ("BF16", "F32") if largest <= TYPES[name].largest]
    return " or ".join(held) or "F32"


def _check_sums(name: str, largest: float, importance: torch.Tensor | None) -> None:
    """Raise UserError where ggml, which looks for the nearest point of a grid, would find none and
    end the process: its sums of weighted cubes must not overflow a float32."""
    weight = 1.0 if importance is None else float(importance.max())
    if not largest**3 * max(weight, 1.0) < _LARGEST_SUM:  # nor NaN
        raise UserError(
            f"a weight of {largest:.4g}, in columns that weigh up to {weight:.4g}, is too large "
            f"for {name}",
            "--quant Q4_K_M, or --no-imatrix",
        )


def _encode_f32(rows: torch.Tensor, importance: torch.Tensor | None) -> memoryview:
    return tensor_bytes(rows.float())


def _encode_bf16(rows: torch.Tensor, importance: torch.Tensor | None) -> memoryview:
    return tensor_bytes(rows.to(torch.bfloat16))


def _encode_f16(rows: torch.Tensor, importance: torch.Tensor | None) -> memoryview:
    return tensor_bytes(rows.half())


def _encode_blocks(
    ggml_id: int,
    block: int,
    block_bytes: int,
    rows: torch.Tensor,
    importance: torch.Tensor | None,
) -> memoryview:
    row_bytes = block_bytes * (rows.shape[-1] // block)
    return quantize_rows(ggml_id, rows.float().contiguous(), row_bytes, importance)


def _blocks(
    name: str,
    ggml_id: int,
    block: int,
    block_bytes: int,
    fallback: str,
    largest: float,
    *,
    weighed: bool = False,
) -> TensorType:
    encode = partial(_encode_blocks, ggml_id, block, block_bytes)
    return TensorType(name, ggml_id, block, block_bytes, encode, largest, fallback, weighed)


# What a float16 holds. A block's factors are of this type, and codes multiply them: a weight may be
# so many times as large. Beyond, ggml writes an infinite factor, and the model computes NaN.
# Encoders that look for the best factor get half of what fits at best, since they try larger ones,
# too, and those of a block's least weight what fits where all weights are negative.
_F16_MAX = 65504.0
_FP8_MAX = 448.0  # E4M3, the factors of NVFP4, which are cut off there
_FP4_MAX = 6.0

# The fallbacks of 256-value blocks are llama.cpp's (tensor_type_fallback); it has none for NVFP4.
TYPES = {
    row.name: row
    for row in (
        TensorType("F32", 0, 1, 4, _encode_f32, torch.finfo(torch.float32).max),
        TensorType("F16", 1, 1, 2, _encode_f16, _F16_MAX),
        TensorType("BF16", 30, 1, 2, _encode_bf16, torch.finfo(torch.bfloat16).max),
        _blocks("Q8_0", 8, 32, 34, "F16", 127 * _F16_MAX),
        _blocks("Q4_0", 2, 32, 18, "F16", 4 * _F16_MAX),
        _blocks("Q4_1", 3, 32, 20, "F16", _F16_MAX / 2),
        _blocks("Q5_0", 6, 32, 22, "F16", 8 * _F16_MAX),
        _blocks("Q5_1", 7, 32, 24, "F16", _F16_MAX / 2),
        _blocks("IQ4_NL", 20, 32, 18, "F16", 64 * _F16_MAX),
        _blocks("MXFP4", 39, 32, 17, "F16", torch.finfo(torch.float32).max),
        _blocks("NVFP4", 40, 64, 36, "Q4_0", _FP8_MAX * _FP4_MAX),
        _blocks("Q2_K", 10, 256, 84, "Q4_0", 8 * _F16_MAX),
        _blocks("Q3_K", 11, 256, 110, "Q4_0", 64 * _F16_MAX),
        _blocks("Q4_K", 12, 256, 144, "Q5_0", 32 * _F16_MAX),
        _blocks("Q5_K", 13, 256, 176, "Q5_1", 32 * _F16_MAX),
        _blocks("Q6_K", 14, 256, 210, "Q8_0", 2048 * _F16_MAX),
        _blocks("IQ4_XS", 23, 256, 136, "IQ4_NL", 1024 * _F16_MAX),
        _blocks("IQ3_S", 21, 256, 110, "IQ4_NL", 128 * _F16_MAX),
        _blocks("IQ3_XXS", 18, 256, 98, "IQ4_NL", 128 * _F16_MAX, weighed=True),
        _blocks("IQ2_S", 22, 256, 82, "IQ4_NL", 64 * _F16_MAX, weighed=True),
        _blocks("IQ2_XS", 17, 256, 74, "IQ4_NL", 64 * _F16_MAX, weighed=True),
        _blocks("IQ2_XXS", 16, 256, 66, "IQ4_NL", 64 * _F16_MAX, weighed=True),
        _blocks("IQ1_M", 29, 256, 56, "IQ4_NL", 4 * _F16_MAX, weighed=True),
        _blocks("IQ1_S", 19, 256, 50, "IQ4_NL", 4 * _F16_MAX, weighed=True),
        _blocks("TQ2_0", 35, 256, 66, "Q4_0", _F16_MAX),
        _blocks("TQ1_0", 34, 256, 54, "Q4_0", _F16_MAX),
    )
}
# Types of points on a grid. Blocks are of 256 values at most, twice as many leave some room.
_GRIDS = frozenset(name for name in TYPES if name.startswith(("IQ1", "IQ2", "IQ3")))
_LARGEST_SUM = torch.finfo(torch.float32).max / 512
_ROUNDED = frozenset({"Q8_0", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0"})
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
FLOAT_TYPES = frozenset(_FLOATS)


_GUESSED = 1024  # llama.cpp's general.file_type of a file that does not say


@dataclass(frozen=True)
class FileType:
    """What ``--quant`` names: ``file_type`` is its general.file_type, ``default`` the type of every
    tensor that its recipe does not single out."""

    name: str
    file_type: int
    default: str

    @property
    def is_float(self) -> bool:
        return self.default in FLOAT_TYPES


FILE_TYPES = {
    row.name: row
    for row in (
        FileType("F32", 0, "F32"),
        FileType("F16", 1, "F16"),
        FileType("BF16", 32, "BF16"),
        FileType("Q8_0", 7, "Q8_0"),
        FileType("Q6_K", 18, "Q6_K"),
        FileType("Q5_K_M", 17, "Q5_K"),
        FileType("Q5_K_S", 16, "Q5_K"),
        FileType("Q4_K_M", 15, "Q4_K"),
        FileType("Q4_K_S", 14, "Q4_K"),
        FileType("IQ4_NL", 25, "IQ4_NL"),
        FileType("IQ4_XS", 30, "IQ4_XS"),
        FileType("Q4_0", 2, "Q4_0"),
        FileType("MXFP4", 38, "MXFP4"),
        FileType("Q3_K_M", 12, "Q3_K"),
        FileType("IQ3_M", 27, "IQ3_S"),
        FileType("IQ3_S", 26, "IQ3_S"),
        FileType("IQ3_XXS", 23, "IQ3_XXS"),
        FileType("Q2_K", 10, "Q2_K"),
        FileType("IQ2_M", 29, "IQ2_S"),
        FileType("IQ2_S", 28, "IQ2_XS"),
        FileType("IQ2_XS", 20, "IQ2_XS"),
        FileType("IQ2_XXS", 19, "IQ2_XXS"),
        FileType("IQ1_M", 31, "IQ1_M"),
        FileType("IQ1_S", 24, "IQ1_S"),
        FileType("TQ2_0", 37, "TQ2_0"),
        FileType("TQ1_0", 36, "TQ1_0"),
    )
}
QUANTS: tuple[str, ...] = tuple(FILE_TYPES)
WEIGHTED_QUANTS = tuple(name for name in QUANTS if TYPES[FILE_TYPES[name].default].weighs_columns)
# Every tensor as the source has it. What is encoded nevertheless is a part of the experts.
FILE_TYPES[KEEP] = FileType(KEEP, _GUESSED, "Q8_0")
# docs/results.md: down to four bits, bits lose less than the neurons of as many bytes.
AUTOMATIC_QUANTS: tuple[str, ...] = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS")
# Fewer bits are taken only where their loss on this very model was measured.
MEASURED_QUANTS: tuple[str, ...] = (*AUTOMATIC_QUANTS, "Q3_K_M", "Q2_K")


def legal_type(wanted: str, row_length: int) -> str:
    """``wanted``, or the first fallback whose blocks divide ``row_length``."""
    name: str | None = wanted
    while name is not None and row_length % TYPES[name].block:
        name = TYPES[name].fallback
    assert name is not None, f"{wanted} has no fallback for rows of {row_length}"
    return name
