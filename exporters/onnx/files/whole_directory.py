"""A directory that appears whole: written beside its place, then moved there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenp_edge.checkpoint.writer import MARKER
from tenp_edge.disk import read_json, write_text
from tenp_edge.errors import UserError
from tenp_edge.exporters.onnx.files.companions import is_ours


def require_writable(target: Path) -> None:
    """UserError unless ``target`` is new, empty, or a directory that this exporter wrote."""
    if target.is_file():
        raise UserError(f"{target} is a file; ONNX is a directory", "another -o")
    if target.exists() and any(target.iterdir()) and not is_ours(target):
        raise UserError(
            f"{target} is not empty and was not written by tenp-edge",
            "an empty or new directory for -o",
        )


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """A temporary directory that becomes ``target`` when the body ends, and else is removed.

    An earlier export in ``target`` stays as it is until then; of it, only its own files go.
    """
    target = target.resolve()
    require_writable(target)
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run
    partial.mkdir(parents=True)
    try:
        yield partial
        _move(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _move(partial: Path, target: Path) -> None:
    """Rename the whole, or where an export lies already, file by file, tenp.json last."""
    if target.exists() and not any(target.iterdir()):
        target.rmdir()
    if not target.exists():
        partial.replace(target)
        return
    marker = target / MARKER  # until the end it says whose files lie here, however it ends
    old = read_json(marker if marker.is_file() else target / "tenp.json").get("files") or {}
    files = [file for file in sorted(partial.rglob("*")) if file.is_file()]
    new = [file.name for file in files if file.parent == partial]
    write_text(marker, json.dumps({"files": dict.fromkeys((*old, *new))}))
    for name in ("tenp.json", *old):
        (target / Path(name).name).unlink(missing_ok=True)
    for file in sorted(files, key=lambda file: file.name == "tenp.json"):
        place = target / file.relative_to(partial)
        place.parent.mkdir(exist_ok=True)
        file.replace(place)
    marker.unlink()
    shutil.rmtree(partial)
