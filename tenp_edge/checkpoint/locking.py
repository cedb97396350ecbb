"""One writer per output: a lock of the operating system's, which ends with its process.

The lock lies on an open file in the directory (or beside the file) that is written. However a
process ends, its lock is gone with it; a killed one leaves an unlocked file, which the next process
takes over and removes. Children do not inherit it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tenp_edge.errors import UserError

LOCK = ".tenp-edge.lock"
_BUSY = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
_UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
_log = logging.getLogger(__name__)
_mine = threading.local()


@contextmanager
def one_writer(directory: Path) -> Iterator[None]:
    """Keep every other process out of ``directory``; inside itself it is free. A directory that is
    created for it goes again when it is still empty in the end.

    Raises UserError when another process writes there.
    """
    is_new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(directory.resolve() / LOCK, directory):
            yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):
                directory.rmdir()


@contextmanager
def one_writer_of(target: Path) -> Iterator[None]:
    """The same for ``target``, a file or a directory that is replaced as a whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent.resolve() / f".{target.name}{LOCK}", target):
        yield


@contextmanager
def _locked(file: Path, shown: Path) -> Iterator[None]:
    held: set[Path] = _mine.__dict__.setdefault("held", set())
    if file in held:
        yield
        return
    descriptor = _acquire(file)
    if descriptor is None:
        raise UserError(
            f"another tenp-edge process{_owner(file)} is writing to {shown}",
            "another -o, or the same command when that one has ended",
        )
    held.add(file)
    try:
        yield
    finally:
        held.discard(file)
        _release(descriptor, file)


def _acquire(file: Path) -> int | None:
    """The locked descriptor of ``file``; None where another process has it."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        if not _lock(descriptor):
            os.close(descriptor)
            return None
        if _is_still(descriptor, file):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
            return descriptor
        os.close(descriptor)  # its last owner removed it between our open and our lock


def _is_still(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except FileNotFoundError:
        return False


def _owner(file: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return f" ({int(file.read_text())})"
    return ""


if sys.platform == "win32":
    import msvcrt

    _FAR = 2**30  # such a lock keeps others from reading: not where the owner's number is

    def _lock(descriptor: int) -> bool:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            return _free(error)
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True

    def _release(descriptor: int, file: Path) -> None:
        os.close(descriptor)  # an open file cannot be removed
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)

else:
    import fcntl

    def _lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return _free(error)
        return True

    def _release(descriptor: int, file: Path) -> None:
        # Removed before it is unlocked: whoever waits at it sees that it is no longer the one.
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        os.close(descriptor)


def _free(error: OSError) -> bool:
    """Whether to go on: yes on a file system that has no locks (some network mounts)."""
    if error.errno in _BUSY:
        return False
    if error.errno not in _UNKNOWN:
        raise error
    _log.warning("this file system has no locks: start nothing else that writes to the same place")
    return True
