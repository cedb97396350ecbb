"""The tensors of a mapped GGUF file as ggml tensors, without a copy, and the KV cache."""

from __future__ import annotations

import mmap

import numpy as np

from tenp_edge.errors import UserError
from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.gguf.header import Header
from tenp_edge.runtime.gguf.model_metadata import Facts
from tenp_edge.runtime.memory.footprint import known_kv_type

CONTEXT_STEP = 256


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


class Cache:
    """Keys and values (or latent rows) of every layer: tensors of (values, slots).

    All of it is resident from the start, as in llama.cpp: what does not fit fails at load, not in
    the middle of a long answer. ``empty``: sizes and shapes alone, at addresses with nothing there.
    """

    def __init__(
        self,
        library: ggml.Library,
        facts: Facts,
        context: int,
        kv_type: str,
        *,
        empty: bool = False,
    ) -> None:
        stored = known_kv_type(kv_type)
        for values in (*facts.cache_rows, *_head_sizes(facts)):
            if values % stored.block:
                raise UserError(
                    f"a {kv_type} cache needs heads that are multiples of {stored.block}, this "
                    f"model's are {values}",
                    "--kv-type F16",
                )
        self._library = library
        self.slots = -(-context // CONTEXT_STEP) * CONTEXT_STEP
        self.type = stored.ggml_id
        sizes = [stored.row_bytes(values) * self.slots for values in facts.cache_rows]
        self.nbytes: int = sum(sizes) * facts.layers
        self._memory = np.empty(64, dtype=np.uint8) if empty else _zeros(self.nbytes)
        self._context = ggml.Context(library, facts.layers * len(sizes))
        start = -(-self._memory.ctypes.data // 64) * 64
        self._buffer = library.ggml_backend_cpu_buffer_from_ptr(start, self.nbytes)
        self.layers: list[tuple[int, ...]] = []
        for _ in range(facts.layers):
            layer = []
            for values, size in zip(facts.cache_rows, sizes, strict=True):
                item = self._context.new_tensor_2d(self.type, values, self.slots)
                library.ggml_backend_tensor_alloc(self._buffer, item, start)
                layer.append(item)
                start += size
            self.layers.append(tuple(layer))

    def close(self) -> None:
        if self._buffer:
            self._library.ggml_backend_buffer_free(self._buffer)
            self._buffer = None
            self._context.close()


def _head_sizes(facts: Facts) -> tuple[int, ...]:
    return (facts.head_dim,) if facts.mla is None else (facts.mla.kv_rank,)


def _zeros(count: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    try:
        memory = np.empty(count + 64, dtype=np.uint8)
    except MemoryError:
        raise UserError(
            f"there is not enough memory for a KV cache of {count:,} bytes", "a smaller --context"
        ) from None
    memory.fill(0)
    return memory
