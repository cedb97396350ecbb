"""The C extension's kernels for several columns at once, type by type.

A row of a block type costs as much to unpack as to multiply, and ggml unpacks it for every column.
A kernel is used where it gives what ggml's dot product gives, to the last bit: they are compared
first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from tenp_edge.runtime.ggml import bindings as ggml

Floats = npt.NDArray[np.float32]
# What the extension calls the types that it has a kernel of.
COLUMN_TYPES = {ggml.Q4_K: "q4_k", ggml.Q5_K: "q5_k", ggml.Q6_K: "q6_k"}
# The best of the processor's instruction sets that it knows; 1 is AVX2.
BEST_LEVEL = 2
# Of the comparison: several blocks of every type, as many columns as a kernel takes.
_LENGTH, _ROWS, _COLUMNS = 1024, 2, 8

_P, _I, _S = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_DOT = ctypes.CFUNCTYPE(None, _I, _P, _S, _P, _S, _P, _S, _I)
_SEVERAL = ctypes.CFUNCTYPE(None, _I, _P, ctypes.c_int64, _I, _P, _I, _P)
_QUANTISE = ctypes.CFUNCTYPE(None, _P, _P, ctypes.c_int64)


@cache
def several_columns(library: ggml.Library, kind: int, level: int = BEST_LEVEL) -> int:
    """Address of the kernel that multiplies rows of type ``kind`` with several columns, in at most
    ``level`` of the processor's instructions; 0 where there is none, or where it is not ggml's."""
    if kind not in COLUMN_TYPES:
        return 0
    try:
        from tenp_edge.runtime.ggml import _ragged
    except ImportError:
        return 0
    address = _ragged.columns(level).get(COLUMN_TYPES[kind], 0)
    if not address:
        return 0
    wanted, found = products(library, kind, address, _LENGTH, _COLUMNS)
    return address if np.array_equal(found, wanted) and np.abs(wanted).min() > 0 else 0


def products(
    library: ggml.Library, kind: int, address: int, length: int, columns: int
) -> tuple[Floats, Floats]:
    """Some rows of ``length`` times so many columns, (columns, rows): by ggml's dot product, and by
    the kernel at ``address``."""
    dot = library.traits(kind)
    values = np.sin(np.arange((_ROWS + columns) * length, dtype=np.float32) ** 1.5)
    values = values.astype(np.float32).reshape(-1, length)
    matrix = np.stack([_quantised(library, kind, row) for row in values[:_ROWS]])
    others = [_quantised(library, dot.vec_dot_type, row) for row in values[_ROWS:]]
    wanted, found = np.zeros((2, columns, _ROWS), np.float32)
    for column, made in zip(others, wanted, strict=True):
        for number, row in enumerate(matrix):
            place = made.ctypes.data + made.itemsize * number
            _DOT(dot.vec_dot)(length, place, 0, row.ctypes.data, 0, column.ctypes.data, 0, 1)
    given, places = _addresses(others), _addresses(list(found))
    size, rows = matrix.shape[1], (given.ctypes.data, columns, places.ctypes.data)
    _SEVERAL(address)(length, matrix.ctypes.data, size, _ROWS, *rows)
    return wanted, found


def _quantised(library: ggml.Library, kind: int, values: Floats) -> npt.NDArray[np.uint8]:
    made = np.zeros(library.ggml_row_size(kind, len(values)), dtype=np.uint8)
    encode = _QUANTISE(library.traits(kind).from_float)
    encode(values.ctypes.data, made.ctypes.data, len(values))
    return made


def _addresses(arrays: Sequence[np.ndarray]) -> npt.NDArray[np.uint64]:
    return np.array([array.ctypes.data for array in arrays], dtype=np.uint64)
