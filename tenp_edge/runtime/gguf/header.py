"""Reading the header of a GGUF file that anyone may have sent: everything checked, nothing loaded.

`parse_header` is a function of bytes and a file size, so it can be fuzzed. Every count and length
is compared with the bytes that are there before it is used; whatever is wrong is a UserError.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from tenp_edge.errors import UserError, shown

MAGIC = b"GGUF"
HEAD_BYTES = 24
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 2**62
_MAX_NAME = 64
_SHOWN = 240
_MAX_KEY = 65535
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_SCALARS[12] = "d"
# What the shortest field and tensor info take, to bound their counts by the bytes that are left.
_LEAST_FIELD, _LEAST_TENSOR = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8

# ggml type -> (name, values in a block, bytes of a block).
GGML_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

Bytes = bytes | bytearray | memoryview | mmap.mmap
Parsed = TypeVar("Parsed")


@dataclass(frozen=True)
class Texts:
    """An array of strings, checked but not decoded: vocabularies are large and seldom needed."""

    count: int
    raw: bytes

    def values(self) -> Iterator[bytes]:
        unpack, position = struct.Struct("<Q").unpack_from, 0
        for _ in range(self.count):
            start = position + 8
            position = start + unpack(self.raw, position)[0]
            yield self.raw[start:position]


Value = int | float | bool | str | npt.NDArray[np.generic] | Texts


class TensorInfo(NamedTuple):
    """One tensor: ``shape`` as ggml counts (row length first), ``offset`` from the file's start."""

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    nbytes: int

    @property
    def type_name(self) -> str:
        return GGML_TYPES[self.type][0]


@dataclass(frozen=True)
class Header:
    """Everything before the tensor data. ``spans``: where the bytes of every field, its key
    included, begin and end in the file."""

    file: str
    fields: dict[str, Value]
    tensors: dict[str, TensorInfo]
    data_start: int
    spans: dict[str, tuple[int, int]]

    @property
    def weight_bytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())


def read_fields(file: Path) -> dict[str, Value]:
    """The metadata of ``file`` alone, enough to choose a runtime; UserError as `read_header`."""
    with mapped(file) as memory, memoryview(memory) as view:
        return _guarded(_Reader(view, file.name), lambda reader: _fields(reader)[0])


def read_header(file: Path) -> Header:
    """The checked header of ``file``; UserError with the reason when it is not usable."""
    with mapped(file) as memory:
        return parse_header(memory, len(memory), file.name)


@contextmanager
def mapped(file: Path) -> Iterator[mmap.mmap]:
    """``file`` as read-only memory. Raises UserError where it cannot be opened or is empty."""
    try:
        with file.open("rb") as stream:
            memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist", "the path of a GGUF file") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is empty"
        raise UserError(f"{file} cannot be read: {reason}", "the path of a GGUF file") from None
    try:
        yield memory
    finally:
        # Where a view is still alive (a model that nobody closed) the mapping goes with it.
        with suppress(BufferError):
            memory.close()


def parse_header(data: Bytes, file_bytes: int, name: str = "the file") -> Header:
    """Parse ``data`` (the file, or its beginning); tensor data must fit into ``file_bytes``."""
    with memoryview(data) as view:
        return _guarded(_Reader(view, name), lambda reader: _parse(reader, file_bytes))


def _guarded(reader: _Reader, parse: Callable[[_Reader], Parsed]) -> Parsed:
    try:
        return parse(reader)
    except UnicodeDecodeError:
        raise reader.error("a name or a text is not UTF-8") from None


def _parse(reader: _Reader, file_bytes: int) -> Header:
    fields, spans, tensor_count = _fields(reader)
    reader.check_count("tensors", tensor_count, _LEAST_TENSOR)
    alignment = _alignment(reader, fields)
    infos = [_tensor_info(reader) for _ in range(tensor_count)]
    data_start = _padded(reader.position, alignment)
    tensors = _placed(reader, infos, data_start, alignment, file_bytes)
    return Header(reader.name, fields, tensors, data_start, spans)


def _fields(reader: _Reader) -> tuple[dict[str, Value], dict[str, tuple[int, int]], int]:
    """The metadata by key, its place by key, and how many tensors are announced."""
    if reader.left < HEAD_BYTES:
        raise reader.error(f"it has {reader.left} bytes, a header needs {HEAD_BYTES}")
    magic = bytes(reader.take(4))
    if magic != MAGIC:
        raise reader.error(f"it begins with {magic!r}, not {MAGIC!r}")
    version, tensor_count, field_count = reader.numbers("IQQ")
    if version not in VERSIONS:
        raise reader.error(f"version {version}; 2 and 3 can be read")
    reader.check_count("metadata fields", field_count, _LEAST_FIELD)
    fields: dict[str, Value] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(field_count):
        start = reader.position
        key = reader.text("a key", _MAX_KEY)
        if key in fields:
            raise reader.error(f"the key {key} is there twice")
        fields[key] = reader.value(reader.number("I"), key)
        spans[key] = start, reader.position
    return fields, spans, tensor_count


def _alignment(reader: _Reader, fields: dict[str, Value]) -> int:
    value = fields.get("general.alignment", DEFAULT_ALIGNMENT)
    legal = isinstance(value, int) and value % DEFAULT_ALIGNMENT == 0 and 0 < value <= 2**20
    if not legal or isinstance(value, bool):
        raise reader.error(f"general.alignment is {value!r}, not a multiple of 32")
    assert isinstance(value, int)
    return value


def _tensor_info(reader: _Reader) -> TensorInfo:
    """One tensor info; its offset is still relative to the data."""
    name = reader.text("a tensor name", _MAX_NAME)
    dimensions = reader.number("I")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise reader.error(f"{name} has {dimensions} dimensions")
    *shape, kind, offset = reader.numbers(f"{dimensions}QIQ")
    elements = math.prod(shape)
    if not 0 < elements < _MAX_ELEMENTS:
        raise reader.error(f"{name} has the impossible shape {_times(shape)}")
    if kind not in GGML_TYPES:
        raise reader.error(f"{name} has the unknown type {kind}")
    type_name, block, block_bytes = GGML_TYPES[kind]
    if shape[0] % block:
        raise reader.error(f"{name}: rows of {shape[0]} do not divide into {type_name} blocks")
    return TensorInfo(name, tuple(shape), kind, offset, elements // block * block_bytes)


def _placed(
    reader: _Reader, infos: list[TensorInfo], data_start: int, alignment: int, file_bytes: int
) -> dict[str, TensorInfo]:
    """The tensors by name with absolute offsets; they must follow each other without gaps."""
    tensors: dict[str, TensorInfo] = {}
    expected = 0
    for info in infos:
        if info.name in tensors:
            raise reader.error(f"the tensor {info.name} is there twice")
        if info.offset != expected:
            raise reader.error(f"{info.name} lies at {info.offset}, not at {expected}")
        start = data_start + info.offset
        if start + info.nbytes > file_bytes:
            raise UserError(
                f"{reader.name} is truncated: {shown(info.name)} ends at byte "
                f"{start + info.nbytes:,}, "
                f"the file has {file_bytes:,}",
                "a complete copy of the file",
            )
        tensors[info.name] = info._replace(offset=start)
        expected = _padded(info.offset + info.nbytes, alignment)
    return tensors


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


@cache
def _packer(codes: str) -> struct.Struct:
    return struct.Struct(f"<{codes}")


class _Reader:
    """A position in the bytes; nothing is read beyond their end."""

    def __init__(self, view: memoryview, name: str) -> None:
        self.view, self.name, self.position = view, name, 0
        self._size = len(view)

    @property
    def left(self) -> int:
        return self._size - self.position

    def error(self, why: str) -> UserError:
        return UserError(
            f"{self.name} is not a usable GGUF file: {shown(why, _SHOWN)}", "a sound copy of it"
        )

    def take(self, count: int) -> memoryview:
        start, stop = self.position, self.position + count
        if stop > self._size:
            raise self.error(
                f"the header ends early ({count:,} bytes wanted, {self.left:,} are left)"
            )
        self.position = stop
        return self.view[start:stop]

    def number(self, code: str) -> int:
        return self.numbers(code)[0]

    def numbers(self, codes: str) -> tuple[int, ...]:
        """Numbers in struct's letters, little-endian and without padding."""
        packer = _packer(codes)
        return packer.unpack(self.take(packer.size))

    def check_count(self, what: str, count: int, least: int) -> None:
        if count * least > self.left:
            raise self.error(f"{count:,} {what} do not fit into the {self.left:,} bytes left")

    def text(self, what: str, most: int | None = None) -> str:
        length = self.number("Q")
        if most is not None and length > most:
            raise self.error(f"{what} of {length:,} bytes")
        return bytes(self.take(length)).decode()

    def value(self, kind: int, key: str) -> Value:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text(key)
        if kind == _ARRAY:
            return self._array(key)
        raise self.error(f"{key} has the unknown type {kind}")

    def _array(self, key: str) -> Value:
        kind, count = self.number("I"), self.number("Q")
        if kind in _SCALARS:
            code = _SCALARS[kind]
            size = struct.calcsize(f"<{code}")
            self.check_count(f"values of {key}", count, size)
            # A copy, so that the file may be closed.
            return np.frombuffer(self.take(count * size), f"<{code}").copy()
        if kind == _STRING:
            self.check_count(f"texts of {key}", count, 8)
            return self._texts(count)
        raise self.error(f"{key} is an array of the type {kind}")

    def _texts(self, count: int) -> Texts:
        """``count`` strings, walked to see that each ends within the file."""
        unpack, view, start = struct.Struct("<Q").unpack_from, self.view, self.position
        position, last = start, self._size - 8
        for _ in range(count):
            if position > last:
                break
            position += 8 + unpack(view, position)[0]
        else:
            if position <= self._size:
                self.position = position
                return Texts(count, bytes(view[start:position]))
        raise self.error("the header ends early (in a list of texts)")
