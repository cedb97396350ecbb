"""ggml's own quantiser through ctypes: byte for byte what llama.cpp writes, at its speed.

The library is the one that llama-cpp-python ships; it is loaded on first use, so planning and the
float types need no native code.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch

from tenp_edge.checkpoint.stored.ggml import ggml_library


def quantize_rows(
    ggml_id: int, rows: torch.Tensor, row_bytes: int, importance: torch.Tensor | None = None
) -> memoryview:
    """Encode float32 ``rows`` [..., row length], contiguous, as ggml type ``ggml_id``.

    ``importance``: [row length] float32 weights of the columns, for types that can use them.
    """
    length = rows.shape[-1]
    count = rows.numel() // length
    target = bytearray(count * row_bytes)
    buffer = (ctypes.c_char * len(target)).from_buffer(target)
    weights = None if importance is None else ctypes.c_void_p(importance.data_ptr())
    written = _library().ggml_quantize_chunk(
        ggml_id, ctypes.c_void_p(rows.data_ptr()), buffer, 0, count, length, weights
    )
    assert written == len(target), f"ggml wrote {written} of {len(target)} bytes"
    return memoryview(target)


@cache
def _library() -> ctypes.CDLL:
    library = ggml_library()
    function = library.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    return library
