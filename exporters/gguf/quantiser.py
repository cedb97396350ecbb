"""ggml's own quantiser through ctypes: byte for byte what llama.cpp writes, at its speed.

The library is the one that llama-cpp-python ships; it is loaded on first use, so planning and the
float types need no native code.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from tenp_edge.errors import UserError

_NAMES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")


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


def dequantize_rows(name: str, data: bytearray, count: int) -> torch.Tensor:
    """Float32 [count] of the blocks in ``data``, of ggml type ``name`` ("Q4_K")."""
    # ggml spells them q4_0, iq4_nl, but q4_K.
    symbol = name.lower() if not name.endswith("_K") else f"{name[:-2].lower()}_K"
    decode = getattr(_library(), f"dequantize_row_{symbol}")
    decode.restype, decode.argtypes = None, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    values = torch.empty(count)
    source = (ctypes.c_char * len(data)).from_buffer(data)
    decode(ctypes.addressof(source), values.data_ptr(), count)
    return values


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_library_file()))
    function = library.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    return library


def _library_file() -> Path:
    spec = find_spec("llama_cpp")
    places: Sequence[str] = (spec.submodule_search_locations or ()) if spec else ()
    for place in places:
        for name in _NAMES:
            file = Path(place) / "lib" / name
            if file.is_file():
                return file
    raise UserError("llama-cpp-python is not installed", "pip install llama-cpp-python")
