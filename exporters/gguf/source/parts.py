"""The file, or the files of a split one: metadata of the first, tensors of all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tenp_edge.errors import UserError
from tenp_edge.runtime.gguf.header import Header, TensorInfo, read_header

_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class Placed:
    """A tensor and the file that it lies in."""

    file: Path
    info: TensorInfo


@dataclass(frozen=True, eq=False)
class GgufParts:
    """``header``: of the first part. ``tensors``: of all parts, by name."""

    path: Path
    header: Header
    tensors: dict[str, Placed]


def open_parts(path: Path) -> GgufParts:
    """The file ``path``, with the others where it is the first of a split one.

    Raises UserError for a broken file, a part that is not the first, and parts that are missing.
    """
    files = list(_files(path))
    stamps = tuple((file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return _opened(tuple(files), stamps)


@lru_cache(maxsize=2)
def _opened(files: tuple[Path, ...], stamps: tuple[object, ...]) -> GgufParts:
    del stamps  # part of the key only: a changed file is read again
    headers = [read_header(file) for file in files]
    tensors: dict[str, Placed] = {}
    for file, header in zip(files, headers, strict=True):
        for name, info in header.tensors.items():
            if name in tensors:
                raise UserError(f"{name} lies in two parts of {files[0].name}", _AGAIN)
            tensors[name] = Placed(file, info)
    first = headers[0].fields
    for key, found, what in (
        ("split.count", len(files), "parts"),
        ("split.tensors.count", len(tensors), "tensors"),
    ):
        stated = first.get(key, found)
        if stated not in (found, 0):
            raise UserError(f"{files[0].name} is of {stated} {what}, {found} are there", _AGAIN)
    return GgufParts(files[0], headers[0], tensors)


_AGAIN = "download all parts again, from one revision"


def _files(path: Path) -> Iterator[Path]:
    match = _PART.fullmatch(path.name)
    if match is None:
        yield path
        return
    stem, number, count = match["stem"], int(match["number"]), int(match["count"])
    names = [f"{stem}-{part:05}-of-{count:05}.gguf" for part in range(1, count + 1)]
    if number != 1:
        raise UserError(
            f"{path.name} is part {number} of {count} of a split GGUF", f"the first, {names[0]}"
        )
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of the {count} parts of {path.name} are missing, the first is "
            f"{missing[0]}",
            "download the missing files into the same directory",
        )
    yield from (path.parent / name for name in names)
