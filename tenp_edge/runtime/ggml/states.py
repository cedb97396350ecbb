"""The states of layers that carry one, beside the KV cache: of a sequence, and two snapshots of it.

    working | branch | end      each `state_bytes` of float32, all resident from the start

Graphs read and write the working state in place. It cannot be cut back to fewer tokens, so copies
of it are kept where a later prompt is likely to go on from:

    branch  where the last prompt that shared a beginning with the one before it went its own way
    end     before the last token of the last prompt: for the same prompt again, and for one that
            goes on with other words than the answer's
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from tenp_edge.models.mixers import STATE_VALUE_BYTES, state_bytes
from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml.cache import zeros
from tenp_edge.runtime.gguf.model_metadata import Facts
from tenp_edge.runtime.memory.footprint import STATE_SNAPSHOTS

_BRANCH, _END = range(STATE_SNAPSHOTS)


class States:
    """One sequence's state tensors of every layer, and snapshots of all of them by position.

    ``layers``: of each layer, name -> working tensor (`Mixer.state_shapes`). ``empty``: sizes and
    shapes alone, at addresses with nothing there.
    """

    def __init__(self, library: ggml.Library, facts: Facts, *, empty: bool = False) -> None:
        self._size = state_bytes(facts.mixers)
        self.nbytes = self._size * (1 + STATE_SNAPSHOTS)
        self._positions: list[int | None] = [None] * STATE_SNAPSHOTS
        self._planned: dict[int, int] = {}
        shapes = [dict(mixer.state_shapes) if mixer else {} for mixer in facts.mixers]
        self._memory = zeros(64 if empty else self.nbytes, "the states of its layers")
        self._library = library
        self._context = ggml.Context(library, sum(map(len, shapes)))
        self._start = -self._memory.ctypes.data % 64
        address = self._memory.ctypes.data + self._start
        self._buffer = library.ggml_backend_cpu_buffer_from_ptr(address, max(self._size, 1))
        self.layers: list[Mapping[str, int]] = []
        for named in shapes:
            tensors = {}
            for name, shape in named.items():
                tensors[name] = self._new(shape, address)
                address += STATE_VALUE_BYTES * prod(shape)
            self.layers.append(tensors)

    def _new(self, shape: tuple[int, ...], address: int) -> int:
        sizes = (ggml.Sizes * len(shape))(*shape)
        made: int = self._context.new_tensor(ggml.F32, len(shape), sizes)
        self._library.ggml_backend_tensor_alloc(self._buffer, made, address)
        return made

    @property
    def any(self) -> bool:
        """Whether the model has such layers."""
        return self._size > 0

    # -- positions -----------------------------------------------------------------------------

    def nearest(self, keep: int, position: int | None) -> int:
        """The last position up to ``keep`` that can be gone back to, from ``position``; None where
        the working state is that of no known one."""
        if keep == position or not self.any:
            return keep
        return max((held for held in self._positions if held and held <= keep), default=0)

    def plan(self, shared: int | None, end: int) -> None:
        """Where the next snapshots are: at ``shared``, if it was lost, and at ``end``."""
        planned = {at: slot for at, slot in self._planned.items() if slot == _BRANCH}
        if shared is not None:
            planned = {shared: _BRANCH}
        self._planned = ({end: _END} | planned) if self.any else {}

    def until_snapshot(self, position: int) -> int | None:
        """Tokens from ``position`` to the next snapshot, None where none is planned."""
        return min((at - position for at in self._planned if at > position), default=None)

    def arrive(self, position: int) -> None:
        """The working state is that of ``position``: copy it where that was planned."""
        slot = self._planned.pop(position, None)
        if slot is not None:
            self._positions[slot] = None  # Until it is there: an interrupt may come between.
            self._place(1 + slot)[:] = self._place(0)
            self._positions[slot] = position

    def return_to(self, keep: int, position: int | None) -> None:
        """Make the state that of ``keep`` again, which `nearest` gave."""
        if keep == position or not self.any:
            return
        if keep == 0:
            self._place(0).fill(0)
            self._planned = {}
        else:
            self._place(0)[:] = self._place(1 + self._positions.index(keep))
        self._positions = [at if at is not None and at <= keep else None for at in self._positions]

    def take(self, other: States, keep: int, position: int | None) -> None:
        """Begin as ``other``, which is at ``position``, was at ``keep`` (its `nearest` gave it)."""
        if self.any:
            held = 0 if keep == position else 1 + other._positions.index(keep)
            self._place(0)[:] = other._place(held)
        self._positions, self._planned = [None] * STATE_SNAPSHOTS, {}

    def _place(self, number: int) -> ggml.Bytes:
        start = self._start + number * self._size
        return self._memory[start : start + self._size]

    def close(self) -> None:
        if self._buffer:
            self._library.ggml_backend_buffer_free(self._buffer)
            self._buffer = None
            self._context.close()
