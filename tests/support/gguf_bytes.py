"""GGUF headers made by hand, sound and broken, and random damage to sound ones."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence

U32, STRING, ARRAY = 4, 8, 9
Info = tuple[str, tuple[int, ...], int, int]


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def field(key: str, kind: int, value: bytes) -> bytes:
    return text(key.encode()) + struct.pack("<I", kind) + value


def info(name: str, shape: Sequence[int], kind: int, offset: int) -> bytes:
    """A tensor info; ``shape`` as ggml counts, row length first."""
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name.encode()) + sizes + struct.pack("<IQ", kind, offset)


def file_of(
    fields: Sequence[bytes] = (),
    infos: Sequence[bytes] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: int = 0,
) -> bytes:
    """A file of these parts; ``counts`` (tensors, fields) may lie, ``data`` bytes follow."""
    tensors, keys = counts or (len(infos), len(fields))
    head = magic + struct.pack("<IQQ", version, tensors, keys) + b"".join((*fields, *infos))
    return head + bytes(-len(head) % 32) + bytes(data)


def damage(sound: bytes, random_: random.Random) -> bytes:
    """``sound`` with one to four things wrong: bytes, numbers, lengths, order."""
    data = bytearray(sound)
    for _ in range(random_.randint(1, 4)):
        if not data:
            break
        _HARM[random_.randrange(len(_HARM))](data, random_)
    return bytes(data)


def _flip(data: bytearray, random_: random.Random) -> None:
    data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)


def _number(data: bytearray, random_: random.Random) -> None:
    """An extreme or a small number over four or eight bytes."""
    size = random_.choice((4, 8))
    extremes = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
    value = random_.choice((*extremes, random_.randrange(64), random_.getrandbits(64)))
    at = random_.randrange(max(1, len(data) - size))
    data[at : at + size] = (value % 2 ** (8 * size)).to_bytes(size, "little")


def _cut(data: bytearray, random_: random.Random) -> None:
    del data[random_.randrange(len(data)) :]


def _remove(data: bytearray, random_: random.Random) -> None:
    at = random_.randrange(len(data))
    del data[at : at + random_.randint(1, 64)]


def _repeat(data: bytearray, random_: random.Random) -> None:
    at = random_.randrange(len(data))
    data[at:at] = data[at : at + random_.randint(1, 64)]


def _exchange(data: bytearray, random_: random.Random) -> None:
    """Two pieces change places: names, values and shapes that are legal somewhere else."""
    size = random_.choice((1, 4, 8, 16))
    first, second = (random_.randrange(max(1, len(data) - size)) for _ in range(2))
    one, other = data[first : first + size], data[second : second + size]
    data[first : first + size], data[second : second + size] = other, one


_HARM = (_flip, _flip, _number, _number, _number, _cut, _remove, _repeat, _exchange)
