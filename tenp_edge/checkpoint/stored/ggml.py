"""ggml's blocks, decoded by ggml itself: its own `to_float` of every type that it can decode.

The library is the one that llama-cpp-python ships; it is loaded on first use.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tenp_edge.errors import UserError

_NAMES = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
_F32 = 0


class _Traits(ctypes.Structure):
    """The beginning of ggml_type_traits (ggml/include/ggml.h)."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantised", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def decode_ggml(
    parts: Mapping[str, torch.Tensor], shape: tuple[int, int], facts: Mapping[str, Any]
) -> torch.Tensor:
    """A weight from tensors of a GGUF. ``parts``: numbers, or bytes (rows, bytes of a row).
    ``facts``: ``types``, the ggml type of each part; ``shapes``, what it is decoded to where that
    is not a matrix; ``restore``, what makes the weight of all of them, None where it is the first.

    Float32 [rows, columns]; columns that only the file has (padding) are cut off.
    """
    decoded = [
        to_float(facts["types"][part], blocks).reshape(
            facts["shapes"].get(part) or (len(blocks), -1)
        )
        for part, blocks in parts.items()
    ]
    restore: Callable[..., torch.Tensor] | None = facts["restore"]
    if restore is not None:
        return restore(*decoded).reshape(shape)
    return decoded[0][:, : shape[1]]


def to_float(ggml_id: int, blocks: torch.Tensor) -> torch.Tensor:
    """Float32 [values] of the whole blocks of ggml type ``ggml_id`` in ``blocks``, uint8."""
    data = blocks.contiguous()
    if data.is_floating_point():
        return data.float().reshape(-1)
    if ggml_id == _F32:
        return data.reshape(-1).view(torch.float32)
    traits = _traits(ggml_id)
    count = data.numel() // traits.block_bytes * traits.block
    values = torch.empty(count)
    traits.to_float(data.data_ptr(), values.data_ptr(), count)
    return values


def decodes(ggml_id: int) -> bool:
    """Whether the installed ggml can decode the type."""
    return ggml_id == _F32 or bool(_traits(ggml_id).to_float)


@cache
def _traits(ggml_id: int) -> Any:
    function = ggml_library().ggml_get_type_traits
    function.restype, function.argtypes = ctypes.POINTER(_Traits), [ctypes.c_int]
    return function(ggml_id).contents


@cache
def ggml_library() -> ctypes.CDLL:
    """libggml-base. Raises UserError where llama-cpp-python is not installed."""
    spec = find_spec("llama_cpp")
    places: Sequence[str] = (spec.submodule_search_locations or ()) if spec else ()
    for place in places:
        for name in _NAMES:
            file = Path(place) / "lib" / name
            if file.is_file():
                return ctypes.CDLL(str(file))
    raise UserError("llama-cpp-python is not installed", "pip install llama-cpp-python")
