"""Which places of the cache a layer writes and sees: all of it, or a ring that holds its window.

    full    position p lies at place p
    window  position p lies at place p % places, so that new tokens overwrite what none sees anymore

All layers of one window share the inputs `rows` and `mask` of a graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tenp_edge.runtime.ggml import bindings as ggml

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """One window's inputs of a graph. ``places``: of the whole cache tensor; ``slots``: the first
    of them, which this graph sees.

    ``rows`` (tokens) int64, the places that are written; ``mask`` (slots, tokens) F16, 0 or -inf.
    """

    window: int | None
    places: int
    slots: int
    rows: int
    mask: int

    def write(self, positions: Positions) -> None:
        """Fill the inputs for tokens at ``positions``, which ascend by one."""
        count = len(positions)
        ggml.array(self.rows, np.int64, (count,))[:] = positions % self.places
        mask = ggml.array(self.mask, np.float16, (count, self.slots))
        if self.window is None:
            _write_causal(mask, positions)
        else:
            _write_window(mask, positions, self.places, self.window)


def _write_causal(mask: npt.NDArray[np.float16], positions: Positions) -> None:
    mask.fill(0)
    for row, position in zip(mask, positions, strict=True):  # in place: it is large
        row[position + 1 :] = -np.inf


def _write_window(
    mask: npt.NDArray[np.float16], positions: Positions, places: int, window: int
) -> None:
    """A place holds the last position that was written to it; below zero, none was."""
    last = positions[-1]
    held = last - (last - np.arange(mask.shape[1])) % places
    for row, position in zip(mask, positions, strict=True):
        seen = (held >= 0) & (held > position - window) & (held <= position)
        row[:] = np.where(seen, 0.0, -np.inf)


def kept_places(window: int | None, places: int, written: int, keep: int) -> bool:
    """Whether a ring that ``written`` tokens went through still holds what the token behind the
    first ``keep`` sees: the last to be overwritten is that of position ``written`` - 1 - places."""
    return window is None or written <= places or written - keep <= places - window + 1
