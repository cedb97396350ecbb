"""The header of one safetensors file: where every tensor lies, checked before it is believed."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tenp_edge.disk import require_regular
from tenp_edge.errors import UserError, shown
from tenp_edge.models.mixers import Shape

# Bytes of a value; the F4 and F6 types, of which none has whole bytes, are refused where they are.
DTYPE_BYTES = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
_MAX_HEADER_BYTES = 512 * 2**20
AGAIN = "download the file again"


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: file, byte offset and length, dtype ("BF16") and shape."""

    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: Shape


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, checked against the file's real length.

    As the safetensors library does, it refuses names that are there twice, and tensors that do not
    fill the file from the first byte of the data to the last, one behind the other.
    """
    require_regular(file)
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size
        if length > min(size - 8, _MAX_HEADER_BYTES):
            raise UserError(
                f"{file.name} is not a safetensors file or is cut short ({size} bytes)",
                AGAIN,
            )
        try:
            header: dict[str, Any] = json.loads(stream.read(length), object_pairs_hook=_unique)
            entries = {k: v for k, v in header.items() if k != "__metadata__"}
            tensors = {k: _stored(file, 8 + length, v) for k, v in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{file.name} has a damaged header", AGAIN) from None
    for name, tensor in tensors.items():
        if tensor.offset + tensor.nbytes > size:
            raise UserError(
                f"{file.name} is cut short: {shown(name)} ends at byte "
                f"{tensor.offset + tensor.nbytes}, the file has {size}",
                AGAIN,
            )
    _check_places(file, tensors, 8 + length, size)
    return tensors


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for key, value in pairs:
        if key in entries:
            raise ValueError(f"{key} is there twice")
        entries[key] = value
    return entries


def _stored(file: Path, base: int, entry: Mapping[str, Any]) -> StoredTensor:
    begin, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    # A bool is an int in Python, and a float compares with one.
    if not all(type(number) is int and number >= 0 for number in (begin, end, *shape)):
        raise ValueError("sizes that are no whole numbers")
    if end < begin or not isinstance(dtype, str):
        raise ValueError("offsets or dtype")
    expected = DTYPE_BYTES.get(dtype)
    if expected is not None and prod(shape) * expected != end - begin:
        raise ValueError("offsets do not match the shape")
    return StoredTensor(file, base + begin, end - begin, dtype, shape)


def _check_places(
    file: Path, tensors: Mapping[str, StoredTensor], start: int, file_bytes: int
) -> None:
    """Raise UserError where two tensors overlap, or bytes belong to none."""
    place = start
    for name, tensor in sorted(
        tensors.items(), key=lambda item: (item[1].offset, item[1].offset + item[1].nbytes)
    ):
        if tensor.offset != place:
            raise UserError(
                f"{file.name} has a damaged header: {shown(name)} begins at byte {tensor.offset}, "
                f"what comes before it ends at {place}",
                AGAIN,
            )
        place += tensor.nbytes
    if place != file_bytes:
        raise UserError(
            f"{file.name} has a damaged header: its tensors end at byte {place}, "
            f"the file has {file_bytes}",
            AGAIN,
        )
