"""The KV cache: keys and values, or latent rows, of every layer that attends.

full     an extent per sequence, all of them in what one sequence needs (`extents`)
window   a ring per sequence, one behind the other
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping

import numpy as np

from tenp_edge.errors import UserError
from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.ggml.extents import Extents, Move
from tenp_edge.runtime.gguf.model_metadata import Facts
from tenp_edge.runtime.memory.footprint import cache_places, known_kv_type


class Cache:
    """Tensors of (values, places) of every layer that attends.

    ``layers``, ``places``: by layer; places for the context, which all ``parallel`` sequences
    share, or of one sequence's ring (`cache_places`). ``most``: places for the context. All of it
    is resident from the start, as in llama.cpp: what does not fit fails at load, not in the middle
    of a long answer. ``empty``: sizes and shapes alone, at addresses with nothing there.
    """

    def __init__(
        self,
        library: ggml.Library,
        facts: Facts,
        context: int,
        kv_type: str,
        ubatch: int,
        *,
        parallel: int = 1,
        empty: bool = False,
    ) -> None:
        stored = known_kv_type(kv_type)
        for values in _row_sizes(facts):
            if values % stored.block:
                raise UserError(
                    f"a {kv_type} cache needs heads that are multiples of {stored.block}, this "
                    f"model's are {values}",
                    "--kv-type F16",
                )
        self._library = library
        self.most = cache_places(context, None, ubatch)
        self.extents = Extents(self.most, parallel)
        self.places = {
            layer: cache_places(context, attention.window, ubatch)
            for layer, attention in facts.attention.items()
        }
        self.type = stored.ggml_id
        rings = {layer: own.window is not None for layer, own in facts.attention.items()}
        self._rings = [layer for layer, is_ring in rings.items() if is_ring]
        shapes = {
            layer: [
                (values, self.places[layer] * (parallel if rings[layer] else 1))
                for values in attention.cache_rows
            ]
            for layer, attention in facts.attention.items()
        }
        self.nbytes: int = sum(stored.row_bytes(v) * n for row in shapes.values() for v, n in row)
        self._memory = zeros(64 if empty else self.nbytes, "a KV cache")
        self._context = ggml.Context(library, sum(map(len, shapes.values())))
        start = -(-self._memory.ctypes.data // 64) * 64
        self._buffer = library.ggml_backend_cpu_buffer_from_ptr(start, self.nbytes)
        self.layers: dict[int, tuple[int, ...]] = {}
        for layer, shape in shapes.items():
            tensors = []
            for values, places in shape:
                item = self._context.new_tensor_2d(self.type, values, places)
                library.ggml_backend_tensor_alloc(self._buffer, item, start)
                tensors.append(item)
                start += stored.row_bytes(values) * places
            self.layers[layer] = tuple(tensors)

    # -- whose places are where ----------------------------------------------------------------

    def start(self, layer: int, sequence: int) -> int:
        """The first place of ``sequence`` in ``layer``."""
        if layer in self._rings:
            return self.places[layer] * sequence
        return self.extents[sequence].start

    def make_room(self, sizes: Mapping[int, int]) -> bool:
        """Have places for so many tokens of each sequence; False where the others hold too much."""
        moves = self.extents.fit(sizes)
        for move in moves or ():
            for layer in self.layers.keys() - self._rings:
                self._move(layer, move)
        return moves is not None

    def copy(self, source: int, target: int, count: int) -> None:
        """Give ``target``, which has room, the first ``count`` tokens of ``source``."""
        for layer, places in self.places.items():
            starts = self.start(layer, source), self.start(layer, target)
            self._move(layer, Move(*starts, places if layer in self._rings else count))

    def _move(self, layer: int, move: Move) -> None:
        for item in map(ggml.tensor, self.layers[layer]):
            row = item.nb[1]
            target, source = (item.data + row * place for place in (move.target, move.source))
            ctypes.memmove(target, source, row * move.count)  # numpy would make a copy between

    def close(self) -> None:
        if self._buffer:
            self._library.ggml_backend_buffer_free(self._buffer)
            self._buffer = None
            self._context.close()


def _row_sizes(facts: Facts) -> Iterator[int]:
    """What must divide into blocks: the rows, and the heads that are viewed in them."""
    for attention in facts.attention.values():
        yield from attention.cache_rows
        yield attention.head_dim if facts.mla is None else facts.mla.kv_rank


def zeros(count: int, what: str) -> ggml.Bytes:
    """``count`` bytes and 64 more to align them, all touched; UserError where there is no room."""
    try:
        memory = np.empty(count + 64, dtype=np.uint8)
    except MemoryError:
        raise UserError(
            f"there is not enough memory for {what} of {count:,} bytes", "a smaller --context"
        ) from None
    memory.fill(0)
    return memory
