"""What exporters share: a file of the manifest's size that appears only when it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tenp_edge.disk import atomic_file, require_free


@contextmanager
def manifest_file(target: Path, nbytes: int) -> Iterator[BinaryIO]:
    """A file of exactly ``nbytes`` to write in any order; ``target`` exists only after success.

    Raises UserError when the disk has no room, before the first byte or when it fills up. What a
    killed run left behind is overwritten by the next.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    require_free(target.parent, nbytes, target.name)
    with atomic_file(target, nbytes) as stream:
        stream.truncate(nbytes)
        yield stream
        assert stream.seek(0, 2) == nbytes, "the writer left the manifest"
