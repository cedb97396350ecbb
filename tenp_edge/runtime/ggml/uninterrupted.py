"""Signals that wait until ggml has computed."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside, Ctrl-C waits for the end of the block.

    An exception in a callback that ggml calls cannot leave it: the graph would go on with numbers
    that nobody wrote, and abort the process. Other threads than the first never get signals.
    """
    came: list[tuple[int, FrameType | None]] = []

    def wait(number: int, frame: FrameType | None) -> None:
        came.append((number, frame))

    before = signal.getsignal(signal.SIGINT)
    try:
        if not callable(before):
            raise ValueError("nobody waits for it")
        signal.signal(signal.SIGINT, wait)
    except ValueError:  # as in another thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came[0])
