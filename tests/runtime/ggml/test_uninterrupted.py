"""Ctrl-C waits until ggml has computed."""

from __future__ import annotations

import signal
import threading

import pytest

from tenp_edge.runtime.ggml.uninterrupted import uninterrupted


def test_a_signal_waits_for_the_end_of_the_block() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        reached = False
        with pytest.raises(KeyboardInterrupt), uninterrupted():
            signal.raise_signal(signal.SIGINT)
            reached = True
        assert reached
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_left_alone() -> None:
    ran: list[bool] = []

    def compute() -> None:
        with uninterrupted():
            ran.append(True)

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert ran
