"""Metadata fields and the header of a GGUF file (version 3), as bytes.

A field is its key and its value already encoded, type tag first, so a header's size is known by
adding up lengths and a large one (a vocabulary) is encoded once and reused.

    magic version n_tensors n_fields | fields | tensor infos | padding | tensor data, each padded

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

import numpy as np

ALIGNMENT = 32
_MAGIC, _VERSION = b"GGUF", 3
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY, _U64 = 4, 5, 6, 7, 8, 9, 10

Field = tuple[str, bytes]


def u32(value: int) -> bytes:
    return struct.pack("<II", _U32, value)


def i32(value: int) -> bytes:
    return struct.pack("<Ii", _I32, value)


def u64(value: int) -> bytes:
    return struct.pack("<IQ", _U64, value)


def f32(value: float) -> bytes:
    return struct.pack("<If", _F32, value)


def boolean(value: bool) -> bytes:
    return struct.pack("<I?", _BOOL, value)


def booleans(values: Sequence[bool]) -> bytes:
    return _array(_BOOL, len(values), bytes(values))


def text(value: str) -> bytes:
    return struct.pack("<I", _STRING) + _string(value.encode())


def u32s(values: Sequence[int]) -> bytes:
    return _array(_U32, len(values), np.asarray(values, dtype="<u4").tobytes())


def i32s(values: Sequence[int]) -> bytes:
    return _array(_I32, len(values), np.asarray(values, dtype="<i4").tobytes())


def f32s(values: Sequence[float]) -> bytes:
    return _array(_F32, len(values), np.asarray(values, dtype="<f4").tobytes())


def texts(values: Iterable[str]) -> bytes:
    encoded = [_string(value.encode()) for value in values]
    return _array(_STRING, len(encoded), b"".join(encoded))


def _array(kind: int, count: int, body: bytes) -> bytes:
    return struct.pack("<IIQ", _ARRAY, kind, count) + body


def _string(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def padded(size: int) -> int:
    """``size`` rounded up to the alignment of tensor data."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def header_bytes(fields: Sequence[Field], tensors: Iterable[tuple[str, int]]) -> int:
    """Bytes before the tensor data, padding included; ``tensors``: (name, dimensions)."""
    size = 24
    size += sum(8 + len(key.encode()) + len(value) for key, value in fields)
    size += sum(8 + len(name.encode()) + 4 + 8 * dims + 12 for name, dims in tensors)
    return padded(size)


def header(
    fields: Sequence[Field], tensors: Sequence[tuple[str, tuple[int, ...], int, int]]
) -> bytes:
    """The header itself, padded. ``tensors``: (name, row-major shape, ggml type, bytes)."""
    parts = [_MAGIC, struct.pack("<IQQ", _VERSION, len(tensors), len(fields))]
    for key, value in fields:
        parts += (_string(key.encode()), value)
    offset = 0
    for name, shape, kind, nbytes in tensors:
        # ggml counts dimensions from the row inwards: ne[0] is the row length.
        parts.append(_string(name.encode()))
        parts.append(struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape)))
        parts.append(struct.pack("<IQ", kind, offset))
        offset += padded(nbytes)
    blob = b"".join(parts)
    return blob + b"\0" * (padded(len(blob)) - len(blob))
