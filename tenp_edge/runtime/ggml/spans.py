"""Which places of the cache a layer writes and sees: all of it, or a ring that holds its window.

    full    position p lies at place p of its sequence
    window  position p lies at place p % places, so that new tokens overwrite what none sees anymore

All layers of one window share the input `rows` of a graph, and for every sequence a `mask`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tenp_edge.runtime.ggml import bindings as ggml

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Span:
    """What the tokens ``first``.. of a graph, all of one sequence, see in layers of one window.

    ``start``: the sequence's first place; ``places``: how many it has; ``slots``: the first of
    them, which this graph sees.
    ``rows`` (all tokens) int64, the places that are written; ``mask`` (slots, tokens) F16, 0 or
    -inf.
    """

    window: int | None
    start: int
    places: int
    slots: int
    first: int
    rows: int
    mask: int

    def write(self, positions: Positions) -> None:
        """Fill the inputs for tokens at ``positions``, which ascend by one."""
        count, end = len(positions), self.first + len(positions)
        rows = ggml.array(self.rows, np.int64, (end,))
        rows[self.first :] = self.start + positions % self.places
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
