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
# What the extension calls the types that it has a kernel of, and the weights of a block.
COLUMN_TYPES = {
    ggml.Q4_0: ("q4_0", 32),
    ggml.Q4_1: ("q4_1", 32),
    ggml.Q5_0: ("q5_0", 32),
    ggml.Q5_1: ("q5_1", 32),
    ggml.Q8_0: ("q8_0", 32),
    ggml.IQ4_NL: ("iq4_nl", 32),
    ggml.Q4_K: ("q4_k", 256),
    ggml.Q5_K: ("q5_k", 256),
    ggml.Q6_K: ("q6_k", 256),
    ggml.IQ4_XS: ("iq4_xs", 256),
}
# The best of the processor's instruction sets that it knows; 1 is AVX2.
BEST_LEVEL = 2
# Of the comparison: even and odd numbers of blocks, as many columns as a kernel takes.
_BLOCKS, _ROWS, _COLUMNS = (3, 8), 2, 8

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
        from tenp_edge.runtime.ggml._ragged import columns
    except ImportError:  # or one that was built before there were any
        return 0
    name, block = COLUMN_TYPES[kind]
    address = columns(level).get(name, 0)
    lengths = [block * blocks for blocks in _BLOCKS] if address else []
    for wanted, found in (products(library, kind, address, n, _COLUMNS) for n in lengths):
        if not np.array_equal(found, wanted) or not np.abs(wanted).min() > 0:
            return 0
    return address


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
