"""The tensors of a mapped GGUF file as ggml tensors, without a copy, and the KV cache."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence

import numpy as np

from tenp_edge.errors import UserError
from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.gguf.header import Header
from tenp_edge.runtime.gguf.model_metadata import Facts
from tenp_edge.runtime.memory.footprint import cache_places, known_kv_type


class Weights:
    """Every tensor of ``header`` by name; the data stay in ``memory`` (the mapped file)."""

    def __init__(self, library: ggml.Library, header: Header, memory: mmap.mmap) -> None:
        self._library = library
        self.bytes = np.frombuffer(memory, dtype=np.uint8)
        self._context = ggml.Context(library, len(header.tensors))
        start = self.bytes.ctypes.data
        self._buffer = library.ggml_backend_cpu_buffer_from_ptr(start, len(self.bytes))
        self.tensors: dict[str, int] = {}
        new, place = self._context.new_tensor, library.ggml_backend_tensor_alloc
        for info in header.tensors.values():
            shape = (ggml.Sizes * len(info.shape))(*info.shape)
            item = new(info.type, len(info.shape), shape)
            place(self._buffer, item, start + info.offset)
            self.tensors[info.name] = item

    def __getitem__(self, name: str) -> int:
        return self.tensors[name]

    def get(self, name: str) -> int | None:
        return self.tensors.get(name)

    def close(self) -> None:
        """Forget the tensors; the mapping can be closed afterwards."""
        if self._buffer:
            self._library.ggml_backend_buffer_free(self._buffer)
            self._buffer = None
            self._context.close()
            self.tensors.clear()
            del self.bytes


class Constant:
    """A vector that no file stores, of float32 or int32. ``tensor``: its address, None of no
    values."""

    def __init__(
        self, library: ggml.Library, values: Sequence[float], kind: int = ggml.F32
    ) -> None:
        self._library = library
        self.tensor: int | None = None
        if not values:
            return
        self._memory = np.zeros(len(values) + 16, dtype=np.float32)
        start = -(-self._memory.ctypes.data // 64) * 64
        self._context = ggml.Context(library, 1)
        self._buffer = library.ggml_backend_cpu_buffer_from_ptr(start, 4 * len(values))
        self.tensor = self._context.new_tensor_1d(kind, len(values))
        library.ggml_backend_tensor_alloc(self._buffer, self.tensor, start)
        dtype = np.float32 if kind == ggml.F32 else np.int32
        ggml.array(self.tensor, dtype, (len(values),))[:] = values

    def close(self) -> None:
        if self.tensor is not None:
            self._library.ggml_backend_buffer_free(self._buffer)
            self._context.close()
            self.tensor = None


class Cache:
    """Keys and values (or latent rows) of every layer that attends: tensors of (values, places).

    ``layers``, ``places``: by layer; places for the context or for what a window needs
    (`cache_places`). All of it is resident from the start, as in llama.cpp: what does not fit fails
    at load, not in the middle of a long answer. ``empty``: sizes and shapes alone, at addresses
    with nothing there.
    """

    def __init__(
        self,
        library: ggml.Library,
        facts: Facts,
        context: int,
        kv_type: str,
        ubatch: int,
        *,
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
        self.slots = cache_places(context, None, ubatch)
        self.places = {
            layer: cache_places(context, attention.window, ubatch)
            for layer, attention in facts.attention.items()
        }
        self.type = stored.ggml_id
        shapes = {
            layer: [(values, self.places[layer]) for values in attention.cache_rows]
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
