"""What exporters share: room on the disk, and a file that appears only when it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tenp_edge.checkpoint import sync
from tenp_edge.errors import UserError
from tenp_edge.units import format_size


def check_room(target: Path, nbytes: int) -> None:
    """Raise UserError unless ``nbytes`` more fit beside ``target``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < nbytes:
        raise UserError(
            f"{target.name} needs {format_size(nbytes)}, "
            f"{target.parent} has {format_size(free)} free",
            "free some space or choose another output directory",
        )


@contextmanager
def atomic_file(target: Path, nbytes: int) -> Iterator[BinaryIO]:
    """A file of exactly ``nbytes`` to write in any order; ``target`` exists only after success.

    Raises UserError when the disk fills up. The temporary file is removed on any error; one that
    a killed run left behind is overwritten by the next.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as stream:
            stream.truncate(nbytes)
            yield stream
            stream.flush()
            sync(stream.fileno())
        assert partial.stat().st_size == nbytes, "the writer left the manifest"
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"{target} cannot be written: {error.strerror} ({format_size(nbytes)} needed)",
            "free some space or choose another output directory",
        ) from error
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
