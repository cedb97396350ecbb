"""Who reads what is printed, and may have enough of it before the end (head)."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

BROKEN_PIPE = 141  # what shells report of a program that SIGPIPE ended


@contextmanager
def last_words() -> Iterator[None]:
    """What is printed inside is the end of finished work: a reader who has enough of it (head) is
    no failure."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise reader_has_left(0) from None
    except SystemExit as stopped:  # rich's word for the same
        if not is_broken_pipe(stopped):
            raise
        raise reader_has_left(0) from None


def is_broken_pipe(stopped: SystemExit) -> bool:
    """Whether a library ends the process so because nobody reads what it prints."""
    return stopped.code == 1 and isinstance(stopped.__context__, BrokenPipeError)


def reader_has_left(code: int = BROKEN_PIPE) -> SystemExit:
    """The end of a run whose output nobody reads any more: quiet, as of other programs.

    Python would complain once more when it closes the streams.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and isinstance(stream.buffer, io.BufferedWriter):
            os.dup2(nowhere, stream.fileno())
    return SystemExit(code)
