"""Ctrl-C and SIGTERM as an exception of our own: everything is tidied up, then a word is said.

KeyboardInterrupt does not do: command-line libraries catch it on its way and say nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
_USUAL = (signal.SIG_DFL, signal.default_int_handler)


class Stopped(BaseException):
    """The process was asked to end by signal ``number``; not an Exception, so nothing eats it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM: what shells expect."""
        return 128 + self.number

    def __str__(self) -> str:
        if self.number == signal.SIGINT:
            return "interrupted"
        return f"ended by {signal.Signals(self.number).name}"


@contextmanager
def stopping() -> Iterator[None]:
    """Inside, signals that end the process raise `Stopped` in the main thread; a second one ends it
    at once. A signal that is ignored (nohup) stays so."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number, handler in before.items() if handler in _USUAL]
    for number in ours:
        signal.signal(number, _stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])


def leave_to_the_verb() -> None:
    """Give Ctrl-C and SIGTERM back to a verb that has its own use for them."""
    for number in _SIGNALS:
        if signal.getsignal(number) is _stop:
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)


def _stop(number: int, _: FrameType | None) -> None:
    for other in _SIGNALS:
        if signal.getsignal(other) is _stop:
            signal.signal(other, signal.SIG_DFL)
    raise Stopped(number)
