"""Files: read whole and checked, written whole or not at all, refused where the disk is full."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from tenp_edge.errors import UserError
from tenp_edge.units import format_size

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_HINT = "free some space or choose -o on another disk; the same command continues"


def free_bytes(directory: Path) -> int:
    """Free bytes where ``directory`` is or, if it does not exist yet, would be."""
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return shutil.disk_usage(directory).free


def require_free(directory: Path, needed_bytes: int, what: str) -> None:
    """UserError unless ``needed_bytes`` more fit on the disk of ``directory``."""
    free = free_bytes(directory)
    if needed_bytes > free:
        raise UserError(
            f"{what} needs {format_size(needed_bytes)} of disk, "
            f"{directory} has {format_size(free)} free",
            _HINT,
        )


def require_parent(target: Path) -> None:
    """UserError where the directory that ``target`` is to lie in does not exist: a mistyped path
    is seen before the work."""
    if target.is_dir():
        raise UserError(f"{target} is a directory", f"-o {target / 'NAME'}")
    if not target.parent.is_dir():
        raise UserError(
            f"the directory {target.parent} does not exist",
            f"mkdir -p {target.parent}, or another -o",
        )


@contextmanager
def atomic_file(target: Path, size_bytes: int) -> Iterator[BinaryIO]:
    """``target`` opened for writing under a temporary name; it gets its own when the body ends.

    Whatever goes wrong inside, no partial file stays. ``size_bytes`` is what the file will have,
    for the UserError that a full disk (or a quota, or a file-size limit) raises.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as stream:
            yield stream
            stream.flush()
            sync(stream.fileno())
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        if error.errno in _FULL:
            raise _full(target, size_bytes, error.errno) from error
        raise
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def copy_file(source: Path, target: Path) -> None:
    """``target`` with the bytes of ``source``: all of them, or no file of that name."""
    with source.open("rb") as bytes_of, atomic_file(target, source.stat().st_size) as stream:
        shutil.copyfileobj(bytes_of, stream)


@contextmanager
def told_when_full(target: Path, size_bytes: int) -> Iterator[None]:
    """Turn a full disk while ``target``, of ``size_bytes``, is written into its UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _full(target, size_bytes, error.errno) from error
        raise


def sync(descriptor: int) -> None:
    """Force a finished file to the disk before it takes its final name."""
    os.fsync(descriptor)


def _full(target: Path, size_bytes: int, code: int | None) -> UserError:
    limit = _file_size_limit() if code == errno.EFBIG else None
    if limit is not None:
        return UserError(
            f"{target.name} needs {format_size(size_bytes)}, "
            f"the limit for one file is {format_size(limit)} (ulimit -f)",
            "raise the limit; the same command continues",
        )
    return UserError(
        f"the disk is full: {target.name} needs {format_size(size_bytes)}, "
        f"{target.parent} has {format_size(free_bytes(target.parent))} free",
        _HINT,
    )


def _file_size_limit() -> int | None:
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if soft == resource.RLIM_INFINITY else soft


_MAX_JSON_BYTES = 256 * 2**20
_AGAIN = "download the file again"


def require_regular(file: Path) -> None:
    """Raise UserError for a pipe or a device, which may never end. One that is missing passes."""
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode):
        raise UserError(f"{file} is not a file", "a file, not a pipe, device or directory")


def read_json(file: Path, remedy: str = _AGAIN) -> dict[str, Any]:
    """A JSON object from ``file``; UserError when it is missing or not one, with ``remedy``."""
    require_regular(file)
    try:
        with file.open("rb") as stream:
            data = stream.read(_MAX_JSON_BYTES + 1)
        if len(data) > _MAX_JSON_BYTES:
            raise UserError(f"{file} is larger than {_MAX_JSON_BYTES >> 20} MiB", _AGAIN)
        value = json.loads(data.decode())
    except FileNotFoundError:
        raise UserError(
            f"{file.parent} has no {file.name}", "the directory of a downloaded model"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}", remedy) from None
    except RecursionError:
        raise UserError(f"{file} is not valid JSON: it is nested too deep", remedy) from None
    if not isinstance(value, dict):
        raise UserError(f"{file} is not a JSON object", remedy)
    return value


def read_range(file: Path, offset: int, nbytes: int) -> bytearray:
    """``nbytes`` of ``file`` at ``offset``, without leaving them in the page cache if possible."""
    buffer = bytearray(nbytes)
    view = memoryview(buffer)
    with file.open("rb", buffering=0) as stream:
        stream.seek(offset)
        done = 0
        while done < nbytes:
            count = stream.readinto(view[done:])
            if not count:
                raise UserError(f"{file.name} is cut short at byte {offset + done}")
            done += count
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(stream.fileno(), offset, nbytes, os.POSIX_FADV_DONTNEED)
    return buffer


def write_text(file: Path, text: str) -> None:
    """Write ``text`` under a temporary name and rename: a reader sees all of it or none."""
    data = text.encode()
    with atomic_file(file, len(data)) as stream:
        stream.write(data)


def write_json(file: Path, value: object, indent: int | None = 1) -> None:
    """Write JSON ``value`` as `write_text` does."""
    write_text(file, json.dumps(value, indent=indent) + "\n")
