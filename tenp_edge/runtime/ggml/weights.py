"""The tensors of a mapped GGUF file as ggml tensors, without a copy, and vectors of our own."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np

from tenp_edge.runtime.ggml import bindings as ggml
from tenp_edge.runtime.gguf.header import Header


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
