"""What the operating system refuses, as a sentence with the path and a way out."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tenp_edge.checkpoint.locking import LOCK
from tenp_edge.errors import UserError

_PLACE = "another -o, in a directory that you may write to"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def as_user_error(error: OSError) -> UserError | None:
    """What to tell the user; None for an OSError that the operating system did not raise."""
    if error.errno is None or error.filename is None:
        return _without_path(error)
    path = Path(os.fsdecode(error.filename2 or error.filename))
    path = _meant(path)
    if error.errno in _FULL:
        return UserError(
            f"the disk is full: {path} could not be written",
            "free some space or choose -o on another disk; the same command continues",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return _denied(path)
    if error.errno == errno.EROFS:
        return UserError(f"{path} lies on a disk that can only be read", _PLACE)
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.ENOENT):
        return _no_place(path)
    if error.errno == errno.EIO:
        return UserError(f"the disk failed to read or write {path}", "a copy on another disk")
    return UserError(f"{path}: {error.strerror}", "another path")


def _meant(path: Path) -> Path:
    """What the user named: not its temporary name, nor the lock in or beside it."""
    if path.name == LOCK:
        return path.parent
    if path.name.endswith(LOCK):
        return path.with_name(path.name.removesuffix(LOCK).removeprefix("."))
    return path.with_suffix("") if path.suffix == ".partial" else path


def _without_path(error: OSError) -> UserError | None:
    if error.errno in _FULL:
        return UserError("the disk is full", "free some space; the same command continues")
    if error.errno == errno.EMFILE:
        return UserError("too many files are open", "ulimit -n 4096, then the same command")
    if error.errno == errno.ENOMEM:
        return UserError("the system has no memory left", "end other programs, then the same")
    if error.errno == errno.EIO:
        return UserError("the disk failed to read or write", "a copy on another disk")
    return None


def _denied(path: Path) -> UserError:
    if path.is_file() and not os.access(path, os.R_OK):
        return UserError(f"{path} cannot be read: no permission", f"chmod u+r {path}")
    if path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
        return UserError(f"{path} cannot be opened: no permission", f"chmod u+rwx {path}")
    if path.exists() and not os.access(path, os.W_OK):
        return UserError(f"{path} cannot be written: no permission", _PLACE)
    return UserError(f"{path} cannot be written: no permission in {_nearest(path)}", _PLACE)


def _no_place(path: Path) -> UserError:
    """Something on the way is not a directory, is in the way, or is not there."""
    for part in (path, *path.parents):
        if part.is_symlink() and not part.exists():
            return UserError(
                f"{part} is a link to {part.readlink()}, which does not exist",
                "another -o, or create what it points to",
            )
        if part.exists() and not part.is_dir():
            return UserError(f"{part} is not a directory", "another -o")
    nearest = _nearest(path)
    if nearest == path.parent or not os.access(nearest, os.W_OK):
        return UserError(f"{path} cannot be created: {nearest} takes no new files", _PLACE)
    return UserError(f"{path} does not exist", f"mkdir -p {path.parent}, or another path")


def _nearest(path: Path) -> Path:
    """The nearest directory above ``path`` that exists."""
    return next((part for part in path.parents if part.is_dir()), Path())
